#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "cli/saved/formats/saved_cache.h"
#include "tests/support/every_bit.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using test::Header;
using test::SavedFile;

namespace {

constexpr Geometry kGeometry{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 3};

/// Two layers of five tokens, numbered.
SavedFile good_file(std::uint32_t query_rows = 2) {
    return test::saved_cache(kGeometry, 5, query_rows, [&](std::uint32_t layer, std::string part) {
        std::size_t const count = part == "q_window" ? 4 * query_rows * 3 : 2 * 5 * 3;
        std::string bytes;
        for (std::size_t i = 0; i < count; ++i) {
            float const value =
                static_cast<float>(i + 1000 * layer) * (part == "values" ? -1.0F : 1.0F);
            bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
        }
        return bytes;
    });
}

std::string bytes_of(std::vector<float> const& values) {
    return {reinterpret_cast<char const*>(values.data()), values.size() * sizeof(float)};
}

struct DkvFileFixture {
    test::TempDir folder;
    std::string path = folder / "cache.safetensors";

    Result<std::unique_ptr<SavedCache>> open(std::string const& text) {
        test::write_file(path, text);
        return open_cache(path);
    }
    void check_refused(std::string const& text,
                       std::string const& message,
                       ErrorCode code = ErrorCode::CorruptData) {
        CAPTURE(message);
        auto const file = open(text);
        REQUIRE_FALSE(file);
        CHECK(file.error().message == path + ": " + message);
        CHECK(file.error().code == code);
    }
    /// A file that is right but for what `change` does to its header.
    template <class Change>
    void check_spoiled(std::string const& message,
                       Change change,
                       ErrorCode code = ErrorCode::CorruptData) {
        auto file = good_file();
        change(file);
        check_refused(file.text(), message, code);
    }
};

float element(RowsView const& view, std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
    float value = 0;
    std::memcpy(&value, view.row(head, token) + dim * sizeof(float), sizeof value);
    return value;
}

}  // namespace

TEST_CASE_FIXTURE(DkvFileFixture, "a saved cache is read as what was saved") {
    auto const file = open(good_file().text());
    REQUIRE(file);
    CHECK(file.value()->geometry() == kGeometry);
    CHECK(file.value()->facts().model == "a small one");
    CHECK(file.value()->facts().prompt_tokens == 5);
    CHECK(file.value()->facts().query_rows == 2);
    CHECK(file.value()->facts().scale == 0);
    auto const layer = file.value()->layer(1).value();
    CHECK(element(layer.keys, 1, 4, 2) == 1029);
    CHECK(element(layer.values, 0, 1, 0) == -1003);
    CHECK(element(layer.queries, 3, 1, 2) == 1023);
}

TEST_CASE_FIXTURE(DkvFileFixture, "queries may be missing, and the logits have their scale") {
    auto saved = good_file(0);
    saved.header["__metadata__"]["scale"] = "0.25";
    saved.header["__metadata__"]["softcap"] = "50";
    auto const file = open(saved.text());
    REQUIRE(file);
    CHECK(file.value()->facts().query_rows == 0);
    CHECK(file.value()->geometry().q_heads == 2);
    CHECK(file.value()->layer(0).value().queries.data == nullptr);
    CHECK(file.value()->facts().scale == 0.25f);
    CHECK(file.value()->facts().softcap == 50.f);
}

TEST_CASE_FIXTURE(DkvFileFixture, "sinks are read, and say how many query heads there are") {
    std::vector<float> const sinks{-1, 0, 2, 30};
    for (std::uint32_t const query_rows : {0U, 2U}) {
        auto saved = good_file(query_rows);
        saved.add("layers.1.sink_logits", "F32", {4}, bytes_of(sinks));
        auto const file = open(saved.text());
        REQUIRE(file);
        CHECK(file.value()->geometry().q_heads == 4);
        CHECK(file.value()->facts().sinks(0).empty());
        CHECK(file.value()->layer(0).value().sink_logits.empty());
        CHECK(std::ranges::equal(file.value()->layer(1).value().sink_logits, sinks));
        CHECK(file.value()->verify(1));
    }
}

TEST_CASE_FIXTURE(DkvFileFixture, "sinks that do not fit are refused by name") {
    auto const with = [](std::string const& dtype, std::vector<float> const& sinks,
                         std::uint32_t query_rows = 2) {
        auto saved = good_file(query_rows);
        saved.add("layers.1.sink_logits", dtype, {sinks.size()}, bytes_of(sinks));
        return saved.text();
    };
    check_refused(with("F32", {1, 2, 3}), "layers.1.sink_logits is F32 [3], not F32 [4]");
    check_refused(with("I32", {1, 2, 3, 4}), "layers.1.sink_logits is I32 [4], not F32 [4]");
    check_refused(with("F32", {1, 2, 3, std::nanf("")}),
                  "layers.1.sink_logits[3] is nan, not a finite number");
    check_refused(with("F32", {1, 2, 3}, 0), "q_heads is 3, no multiple of kv_heads 2");
    auto far = good_file();
    far.add("layers.2.sink_logits", "F32", {4}, bytes_of(std::vector<float>(4)));
    check_refused(far.text(), "layers.2.keys is missing");
}

TEST_CASE_FIXTURE(DkvFileFixture, "scores of every token are read, in every layer or in none") {
    auto const with = [](std::vector<std::string> const& layers, std::string const& dtype,
                         std::uint64_t tokens, float first = 0) {
        auto saved = good_file();
        std::vector<float> scores(2 * tokens);
        std::iota(scores.begin(), scores.end(), first);
        for (auto const& layer : layers)
            saved.add("layers." + layer + ".scores", dtype, {2, tokens}, bytes_of(scores));
        return saved.text();
    };
    CHECK_FALSE(open(good_file().text()).value()->facts().has_scores);
    auto const file = open(with({"0", "1"}, "F32", 5));
    REQUIRE(file);
    CHECK(file.value()->facts().has_scores);
    CHECK(file.value()->verify(1));
    auto const layer = file.value()->layer(1).value();
    auto const& scores = layer.scores;
    CHECK(scores.heads == 2);
    CHECK(scores.tokens == 5);
    CHECK(element(scores, 1, 3, 0) == 8);

    check_refused(with({"0"}, "F32", 5),
                  "layers.1.scores is missing, and layers.0.scores is there");
    check_refused(with({"1"}, "F32", 5),
                  "layers.1.scores is there, and layers.0.scores is missing");
    check_refused(with({"0", "1"}, "F32", 4), "layers.0.scores is F32 [2, 4], not F32 [2, 5]");
    check_refused(with({"0", "1"}, "I32", 5), "layers.0.scores is I32 [2, 5], not F32 [2, 5]");
    auto const odd = open(with({"0", "1"}, "F32", 5, HUGE_VALF));
    REQUIRE(odd);
    auto const verified = odd.value()->verify(0);
    REQUIRE_FALSE(verified);
    CHECK(verified.error().message.ends_with("layers.0.scores: element 0 is a NaN or an infinity"));
}

TEST_CASE_FIXTURE(DkvFileFixture, "a file that is cut anywhere is refused") {
    std::string const whole = good_file().text();
    for (std::size_t size = 0; size < whole.size(); size += size < 1200 ? 1 : 37) {
        auto const file = open(whole.substr(0, size));
        REQUIRE_FALSE(file);
        CHECK(file.error().code == ErrorCode::CorruptData);
    }
    CHECK_FALSE(open(whole + "x"));
}

TEST_CASE_FIXTURE(DkvFileFixture,
                  "no flipped bit of the header is more than a refusal or another number") {
    std::string const whole = good_file().text();
    std::size_t const bits = 8 * std::min<std::size_t>(8 + 1200, whole.size());
    for (std::size_t bit = 0; bit < bits; bit += test::bit_step()) {
        std::string spoiled = whole;
        spoiled[bit / 8] = static_cast<char>(spoiled[bit / 8] ^ (1 << bit % 8));
        auto const file = open(spoiled);
        if (file) CHECK(file.value()->geometry().layers > 0);
    }
}

TEST_CASE_FIXTURE(DkvFileFixture, "lying headers are refused in one line") {
    SavedFile const good = good_file();
    check_refused(
        std::string("\xff\0\0\0\0\0\0\0{}", 10),
        "not safetensors, or cut short: its header would have 255 bytes, and the file has "
        "10");
    check_refused(good.framed("{\"a\": "), "the header is not JSON");
    check_refused(good.framed(R"({"a": {"dtype": "F32", "dtype": "F16"}})"),
                  "the header has \"dtype\" twice");
    check_refused(good.framed(R"({"a": 1, "a": 2})"), "the header has \"a\" twice");
    check_refused(good.framed("{\"a\": " + std::string(2000, '[') + std::string(2000, ']') + "}"),
                  "the header is nested too deep");
    check_refused(good.framed(R"({"a": 3})"), "tensor \"a\" has no dtype");
    check_refused(good.framed(R"({"__metadata__": {"format": 3}})"),
                  "__metadata__: \"format\" is not a string");
}

TEST_CASE_FIXTURE(DkvFileFixture, "offsets and sizes that cannot be are refused by name") {
    auto const keys = [](SavedFile& file) -> Header& { return file.header["layers.0.keys"]; };
    check_spoiled(
        "tensor \"layers.0.keys\": data_offsets [0, 9999] do not lie in 672 bytes of data: the "
        "file may be cut short",
        [&](SavedFile& file) { keys(file)["data_offsets"][1] = 9999; });
    check_spoiled("tensor \"layers.0.keys\": data_offsets contains a value that is not a count",
                  [&](SavedFile& file) { keys(file)["data_offsets"][0] = -1; });
    check_spoiled("tensor \"layers.0.keys\": F32 [2, 5, 4] does not take 120 bytes",
                  [&](SavedFile& file) { keys(file)["shape"][2] = 4; });
    check_spoiled(
        "tensor \"layers.0.keys\": F32 [4611686018427387904, 5, 3] does not take 120 bytes",
        [&](SavedFile& file) { keys(file)["shape"][0] = std::uint64_t{1} << 62; });
    check_spoiled("tensor \"layers.0.keys\": dtype \"Q4\" is unknown",
                  [&](SavedFile& file) { keys(file)["dtype"] = "Q4"; });
    check_spoiled("tensor \"layers.0.values\" overlaps the one before it", [&](SavedFile& file) {
        file.header["layers.0.values"]["data_offsets"] = {0, 120};
    });
    check_spoiled("8 bytes before tensor \"layers.0.keys\" belong to none", [&](SavedFile& file) {
        for (auto& [name, tensor] : file.header.items())
            if (name != "__metadata__")
                for (auto& offset : tensor["data_offsets"])
                    offset = offset.get<std::uint64_t>() + 8;
        file.data += std::string(8, ' ');
    });
    check_spoiled("the last 3 bytes belong to no tensor",
                  [&](SavedFile& file) { file.data += "abc"; });
}

TEST_CASE_FIXTURE(DkvFileFixture, "another file than a cache is refused by what it lacks") {
    check_spoiled("the metadata has no \"format\"",
                  [](SavedFile& file) { file.header.erase("__metadata__"); });
    auto const set = [](char const* key, char const* value) {
        return [=](SavedFile& file) { file.header["__metadata__"][key] = value; };
    };
    check_spoiled("the metadata's format is \"pt\", not \"dkv\"", set("format", "pt"));
    check_spoiled("the metadata's version is \"3\", and this dkv reads 1 and 2",
                  set("version", "3"), ErrorCode::Unsupported);
    check_spoiled("the metadata's n_prompt is \"5x\", not a number of tokens",
                  set("n_prompt", "5x"));
    check_spoiled("the metadata's scale is not a number of at least 0", set("scale", "nan"));
    check_spoiled("layers.0.q_window is [4, 2, 3], of 1 tokens", set("n_prompt", "1"));
    check_spoiled("layers.0.keys has 5 of 9 tokens, but layers.0.positions is missing",
                  set("n_prompt", "9"));
    auto const rename = [](std::string const& from, std::string const& to) {
        return [=](SavedFile& file) {
            file.header[to] = file.header[from];
            file.header.erase(from);
        };
    };
    check_spoiled("layers.0.keys is missing", rename("layers.0.keys", "k_0"));
    check_spoiled("layers.1.values is missing", rename("layers.1.values", "v_1"));
    check_spoiled("layers.1.q_window is missing", rename("layers.1.q_window", "q_1"));
}

TEST_CASE_FIXTURE(DkvFileFixture, "what is no regular file is refused without waiting") {
    auto const message = [](std::string const& where) {
        auto const file = open_cache(where);
        REQUIRE_FALSE(file);
        CHECK(file.error().code == ErrorCode::Io);
        return file.error().message;
    };
    CHECK(message(folder.path()) ==
          folder.path() +
              ": a folder of none of the formats I know (vllm: one .safetensors per layer; "
              "lmcache: .data): it is empty");
    CHECK(message(path) == path + ": No such file or directory");
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    CHECK(message(path) == path + ": not a regular file");
}
