#include "sidecar/config/profile_file.h"

#include <cmath>
#include <fstream>

#include <doctest/doctest.h>

#include "sidecar/policy/profile_budgets.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

using Json = nlohmann::ordered_json;

Json good() {
    return Json::parse(R"({
        "format": "dkv-profile", "version": 1,
        "model": {"name": "tiny", "geometry": {"layers": 3, "compressed": [0, 2], "q_heads": 4,
                                               "kv_heads": 2, "head_dim": 8}},
        "recipe": {"needles": 12}, "granularity": "head", "alpha": 0.5, "floor": 0.2,
        "weights": [[1, 2], [3, 4.5]], "figures": {}})");
}

struct Folder {
    std::string path(std::string const& text) const {
        auto const path = std::string(folder.path()) + "/profile.json";
        std::ofstream(path) << text;
        return path;
    }
    /// What is said of a file of this text, without its path.
    std::string refusal(std::string const& text, ErrorCode code = ErrorCode::CorruptData) const {
        auto const file = path(text);
        auto const profile = read_profile(file);
        REQUIRE_FALSE(profile);
        CHECK(profile.error().code == code);
        auto message = profile.error().message;
        if (message.starts_with(file)) message.erase(0, file.size() + 1);
        return message;
    }
    /// The same of the good file after one change.
    template <class Change>
    std::string refusal_of(Change const& change, ErrorCode code = ErrorCode::CorruptData) const {
        auto json = good();
        change(json);
        return refusal(json.dump(), code);
    }
    test::TempDir folder;
};

}  // namespace

TEST_CASE("a profile file gives a profile, and what it says beside it") {
    Folder const folder;
    auto json = good();

    auto const file = read_profile_file(folder.path(json.dump()));

    REQUIRE(file);
    auto const& profile = file.value().profile;
    CHECK(profile.name == "tiny");
    CHECK(profile.layers == 2);
    CHECK(profile.heads == 2);
    CHECK(profile.weights == std::vector<double>{1, 2, 3, 4.5});
    CHECK(profile.alpha == 0.5);
    CHECK(profile.floor == 0.2);
    CHECK(profile.kernel == 0);
    CHECK(file.value().kv_heads == 2);
    CHECK(file.value().recipe.at("needles") == 12);

    json["granularity"] = "layer";
    json["weights"] = {{1}, {3}};
    json["kernel"] = 21;
    auto const by_layer = read_profile(folder.path(json.dump()));
    REQUIRE(by_layer);
    CHECK(by_layer.value().heads == 1);
    CHECK(by_layer.value().kernel == 21);
}

TEST_CASE("the shipped profile is read") {
    auto const file = read_profile_file(DKV_SHIPPED_PROFILE);
    REQUIRE(file);
    CHECK(file.value().profile.layers == 30);
    CHECK(file.value().kv_heads == 3);
    CHECK(file.value().profile.name == "SmolLM2-135M-Instruct");
}

TEST_CASE("a profile file that is cut at any length is refused") {
    Folder const folder;
    auto const text = good().dump();
    for (std::size_t length = 0; length < text.size(); ++length) {
        CAPTURE(length);
        CHECK(folder.refusal(text.substr(0, length)) == "is not JSON");
    }
}

TEST_CASE("a file that is no profile is refused by what is wrong with it") {
    Folder const folder;
    CHECK(folder.refusal("[1, 2]") == "is not a dkv-profile file");
    CHECK(folder.refusal("{}") == "is not a dkv-profile file");
    CHECK(folder.refusal(R"({"format": 7})") == "is not a dkv-profile file");
    CHECK(folder.refusal_of([](Json& json) { json["version"] = 2; }, ErrorCode::Unsupported) ==
          "has version 2; this build reads version 1");
    CHECK(folder.refusal_of([](Json& json) { json.erase("version"); }, ErrorCode::Unsupported) ==
          "has version null; this build reads version 1");
    CHECK(folder.refusal_of([](Json& json) { json["granularity"] = "token"; }) ==
          "has granularity token, not layer or head");
    CHECK(folder.refusal_of([](Json& json) {
        json["weights"].push_back({5, 6});
    }) == "has weights of 3 layers, and its geometry has 2");
    CHECK(folder.refusal_of([](Json& json) {
        json["weights"][1] = {1, 2, 3};
    }) == "has a layer of 3 weights, not of 2");
    CHECK(folder.refusal_of([](Json& json) { json["weights"][1] = Json::array(); }) ==
          "has a layer of 0 weights, not of 2");
    CHECK(folder.refusal_of([](Json& json) { json["weights"][1][1] = "much"; })
              .starts_with("is malformed: "));
    for (auto const* const field : {"model", "granularity", "alpha", "floor", "weights"})
        CHECK(folder.refusal_of([&](Json& json) { json.erase(field); }).find(field) !=
              std::string::npos);
}

TEST_CASE("a profile file's numbers are checked as any profile's are") {
    Folder const folder;
    auto const invalid = ErrorCode::InvalidArgument;
    CHECK(folder.refusal_of([](Json& json) { json["weights"][0][1] = -1; }, invalid) ==
          "profile \"tiny\" has a weight of -1 at 1");
    CHECK(folder.refusal_of(
              [](Json& json) {
                  json["weights"] = {{0, 0}, {0, 0}};
              },
              invalid) == "profile \"tiny\" has no weight above 0");
    CHECK(folder.refusal_of([](Json& json) { json["alpha"] = 20; }, invalid) ==
          "profile \"tiny\" has alpha 20, not in 0 … 8");
    CHECK(folder.refusal_of([](Json& json) { json["floor"] = 2; }, invalid) ==
          "profile \"tiny\" has floor 2, not in 0 … 1");
    CHECK(folder.refusal_of([](Json& json) { json["kernel"] = 8; }, invalid) ==
          "profile \"tiny\" has kernel 8, not an odd number in 1 … 63");
    CHECK(folder.refusal_of(
              [](Json& json) {
                  json["weights"] = Json::array();
                  json["model"]["geometry"]["compressed"] = Json::array();
              },
              invalid) == "profile \"tiny\" has 0 layers of 2 heads");
    // JSON has neither.
    auto text = good().dump();
    text.replace(text.find("4.5"), 3, "NaN");
    CHECK(folder.refusal(text) == "is not JSON");
    text.replace(text.find("NaN"), 3, "1e999");
    CHECK(folder.refusal(text) == "is not JSON");
}

TEST_CASE("a name that comes twice is refused, wherever it stands") {
    Folder const folder;
    auto text = good().dump();
    text.insert(1, R"("alpha": 3, )");
    CHECK(folder.refusal(text) == "has \"alpha\" twice");
    text = good().dump();
    text.insert(text.find("\"q_heads\""), R"("kv_heads": 2, )");
    CHECK(folder.refusal(text) == "has \"kv_heads\" twice");
}

TEST_CASE("a file that cannot be read, or is far too large, is refused before it is read") {
    Folder const folder;
    auto const none = read_profile("/nonexistent/profile.json");
    REQUIRE_FALSE(none);
    CHECK(none.error().code == ErrorCode::Io);
    CHECK(none.error().message ==
          "/nonexistent/profile.json cannot be read: No such file or directory");
    auto const directory = read_profile(std::string(folder.folder.path()));
    REQUIRE_FALSE(directory);
    CHECK(directory.error().code == ErrorCode::Io);
    auto const device = read_profile("/dev/zero");
    REQUIRE_FALSE(device);
    CHECK(device.error().code == ErrorCode::Io);

    auto const path = folder.path("{}");
    std::filesystem::resize_file(path, std::uintmax_t{1} << 34U);
    auto const huge = read_profile(path);
    REQUIRE_FALSE(huge);
    CHECK(huge.error().message == path + " has 17179869184 bytes, too many for a profile");
}

TEST_CASE("budgets from a profile are those of dkv_lab.budgets, to the token") {
    std::ifstream stream(DKV_PROFILE_BUDGETS);
    Json const golden = Json::parse(stream);
    std::uint32_t const window = golden.at("window");
    CHECK(golden.at("cases").size() == 80);
    for (Json const& one : golden.at("cases")) {
        Profile profile{.name = "golden",
                        .layers = 0,
                        .heads = 0,
                        .weights = {},
                        .alpha = one.at("alpha"),
                        .floor = one.at("floor")};
        for (Json const& row : golden.at("weights").at(one.at("granularity").get<std::string>())) {
            ++profile.layers;
            profile.heads = static_cast<std::uint32_t>(row.size());
            for (double const weight : row)
                profile.weights.push_back(weight);
        }
        REQUIRE(check(profile));
        PromptShape const shape{.layers = profile.layers,
                                .kv_heads = 3,
                                .prompt_tokens = one.at("tokens"),
                                .window = window};

        auto const budgets =
            profile_budgets(profile, one.at("capacity").get<std::uint32_t>() - window, shape);

        CAPTURE(one.at("granularity").dump());
        CAPTURE(profile.alpha);
        CAPTURE(shape.prompt_tokens);
        CAPTURE(one.at("capacity").dump());
        auto const expected = one.at("budgets").get<std::vector<std::vector<std::uint32_t>>>();
        REQUIRE(expected.size() == profile.layers);
        for (std::uint32_t layer = 0; layer < profile.layers; ++layer)
            CHECK(std::ranges::equal(budgets.layer(layer), expected[layer]));
    }
}

TEST_CASE("a profile file may have a surrogate, whose weights are bf16 in hexadecimal") {
    Folder const folder;
    auto json = good();
    // 2 KV heads of 8 dimensions: 37 weights a head, two heads, two layers.
    std::string layer;
    for (int i = 0; i < 2 * 37; ++i)
        layer += i == 1 ? "20c0" : "803f";  // -2.5 and 1, the lower byte first.
    json["surrogate"] = {{"version", 1},
                         {"target", "kvzip"},
                         {"rope", {{"frequencies", {1.0, 0.5}}, {"interleaved", true}}},
                         {"features", 37},
                         {"weights", {layer, layer}},
                         {"r2", {{0.5, 0.75}, {0.25, 0.5}}}};

    auto const file = read_profile_file(folder.path(json.dump()));

    REQUIRE(file);
    Surrogate const& surrogate = *file.value().profile.surrogate;
    CHECK(surrogate.kv_heads == 2);
    CHECK(surrogate.head_dim == 8);
    CHECK(surrogate.frequencies == std::vector{1.0F, 0.5F});
    CHECK(surrogate.interleaved);
    CHECK(surrogate.weights.size() == 2 * 2 * 37);
    CHECK(surrogate.weights[0] == 1);
    CHECK(surrogate.weights[1] == -2.5F);
    CHECK(file.value().surrogate.at("target") == "kvzip");
    CHECK_FALSE(file.value().surrogate.contains("weights"));

    auto const refused = [&](auto const& change, ErrorCode code = ErrorCode::CorruptData) {
        auto changed = json;
        change(changed["surrogate"]);
        return folder.refusal(changed.dump(), code);
    };
    CHECK(refused([](Json& s) { s["version"] = 2; }, ErrorCode::Unsupported) ==
          "has a surrogate of version 2; this build reads version 1");
    CHECK(refused([](Json& s) { s["features"] = 36; }) ==
          "has a surrogate of 36 features, and its geometry takes 37");
    CHECK(refused([&](Json& s) {
              s["weights"] = {layer, layer.substr(1)};
          }) == "has surrogate weights that are not hexadecimal bf16");
    CHECK(refused([&](Json& s) { s["weights"] = {layer}; }, ErrorCode::InvalidArgument)
              .ends_with("has a surrogate of 74 weights for 2 layers of 2 KV heads of 8 "
                         "dimensions, which take 148"));
    CHECK(refused(
              [&](Json& s) {
                  s["weights"] = {layer, layer.substr(4) + "c07f"};
              },
              ErrorCode::InvalidArgument)
              .ends_with("has a surrogate with a number that is not finite"));
}

TEST_CASE("a surrogate is reordered for keys whose dims turn together in the other way") {
    Surrogate halves{.kv_heads = 1,
                     .head_dim = 5,
                     .weights = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13},
                     .frequencies = {1.0F, 0.5F},
                     .interleaved = false};
    Surrogate const pairs = reordered(halves, true);
    // Dims 0 and 2, 1 and 3 turned together; what is no key stays.
    CHECK(pairs.weights == std::vector<float>{1, 3, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13});
    CHECK(reordered(pairs, false).weights == halves.weights);
    CHECK(reordered(halves, false).weights == halves.weights);
}

}  // namespace dkv
