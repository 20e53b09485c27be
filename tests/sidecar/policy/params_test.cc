#include "sidecar/policy/params.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "sidecar/policy/policy.h"
#include "tests/support/results.h"

using namespace dkv;

namespace {

void check_refused(PolicyRequest const& request, ErrorCode code, std::string const& message) {
    auto const params = resolve(request);
    REQUIRE_FALSE(params);
    CHECK(params.error().code == code);
    CHECK(params.error().message == message);
}

void check_invalid(PolicyRequest const& request, std::string const& message) {
    check_refused(request, ErrorCode::InvalidArgument, message);
}

}  // namespace

TEST_CASE("a request that says nothing but a name gets the defaults") {
    auto const params = resolve({.name = "snapkv"});

    REQUIRE(params);
    CHECK(params.value() == PolicyParams{.name = "snapkv"});
    CHECK(params.value().base() == 480);
}

TEST_CASE("a request overrides what it names") {
    auto const params = resolve({.name = "dynamickv",
                                 .capacity = 128,
                                 .window = 16,
                                 .kernel = 5,
                                 .pool = Pool::Avg,
                                 .reduce = GroupReduce::Sum,
                                 .r_max = 5.0,
                                 .r_min = 0.25,
                                 .update_interval = 3,
                                 .sinks = 2,
                                 .beta = 10.0});

    REQUIRE(params);
    CHECK(params.value() == PolicyParams{"dynamickv", 128, 16, 5, Pool::Avg, GroupReduce::Sum, 5.0,
                                         0.25, 3, 2, 10.0});
}

TEST_CASE("a capacity of just the window is allowed, and leaves no room for sinks") {
    auto const params = resolve({.name = "streamingllm", .capacity = 32});

    REQUIRE(params);
    CHECK(params.value().base() == 0);
    CHECK(params.value().sinks == 0);
    CHECK(resolve({.name = "streamingllm", .capacity = 34}).value().sinks == 2);
}

TEST_CASE("an unknown policy is refused with the list of the known ones") {
    check_refused({.name = "dynamicvk"}, ErrorCode::NotFound,
                  "no policy is called \"dynamicvk\"; there are auto, fullkv, streamingllm, h2o, "
                  "snapkv, pyramidkv, dynamickv, knorm, keydiff, reuse, scores");
    CHECK(resolve({.name = ""}).error().code == ErrorCode::NotFound);
}

TEST_CASE("a reference form is refused by saying where it runs") {
    for (std::string_view const name : reference_forms())
        check_refused({.name = std::string(name)}, ErrorCode::Unsupported,
                      std::string(name) +
                          " is a published code's form, for comparison only: it runs in "
                          "`dkv diff FILE --against " +
                          std::string(name) + "`, not in a sidecar");
    CHECK(reference_forms().size() == 6);
}

TEST_CASE("numbers out of range are refused by name and value") {
    check_invalid({.name = "snapkv", .capacity = 31},
                  "capacity is 31, below the window of 32 tokens that are always kept");
    check_invalid({.name = "snapkv", .capacity = 0},
                  "capacity is 0, below the window of 32 tokens that are always kept");
    check_invalid({.name = "snapkv", .window = 0}, "window is 0, not in 1 … 1024");
    check_invalid({.name = "snapkv", .capacity = 2000, .window = 1025},
                  "window is 1025, not in 1 … 1024");
    check_invalid({.name = "snapkv", .kernel = 0}, "kernel is 0, not an odd number in 1 … 63");
    check_invalid({.name = "snapkv", .kernel = 6}, "kernel is 6, not an odd number in 1 … 63");
    check_invalid({.name = "snapkv", .kernel = 65}, "kernel is 65, not an odd number in 1 … 63");
    check_invalid({.name = "snapkv", .reduce = GroupReduce::None},
                  "reduce is none, not mean, max or sum");
    check_invalid({.name = "dynamickv", .r_max = 0.99},
                  "r_max is 0.99, not a number of at least 1");
    check_invalid({.name = "dynamickv", .r_min = -0.1}, "r_min is -0.1, not in 0 … 1");
    check_invalid({.name = "dynamickv", .r_min = 1.5}, "r_min is 1.5, not in 0 … 1");
    check_invalid({.name = "dynamickv", .update_interval = 0},
                  "update_interval is 0, not at least 1");
    check_invalid({.name = "streamingllm", .capacity = 40, .sinks = 9},
                  "sinks is 9, above capacity - window, which is 8");
    check_invalid({.name = "pyramidkv", .beta = 0.5}, "beta is 0.5, not a number of at least 1");
}

TEST_CASE("numbers that are none are refused") {
    double const nan = std::numeric_limits<double>::quiet_NaN();
    double const infinity = std::numeric_limits<double>::infinity();

    check_invalid({.name = "dynamickv", .r_max = nan}, "r_max is nan, not a number of at least 1");
    check_invalid({.name = "dynamickv", .r_max = infinity},
                  "r_max is inf, not a number of at least 1");
    check_invalid({.name = "dynamickv", .r_min = nan}, "r_min is nan, not in 0 … 1");
    check_invalid({.name = "pyramidkv", .beta = nan}, "beta is nan, not a number of at least 1");
}

TEST_CASE("the bounds themselves are allowed") {
    CHECK(resolve({.name = "dynamickv", .capacity = 1, .window = 1}));
    CHECK(resolve({.name = "dynamickv", .capacity = 1024, .window = 1024}));
    CHECK(resolve({.name = "dynamickv", .kernel = 1}));
    CHECK(resolve({.name = "dynamickv", .kernel = 63}));
    CHECK(resolve({.name = "dynamickv", .r_max = 1.0, .r_min = 0.0, .beta = 1.0}));
    CHECK(resolve({.name = "dynamickv", .r_min = 1.0, .update_interval = 0xFFFFFFFF}));
    CHECK(resolve({.name = "streamingllm", .capacity = 40, .sinks = 8}));
}

TEST_CASE("sizes other than a capacity are checked, and stand in its place") {
    check_invalid({.name = "snapkv", .ratio = 0.0}, "ratio is 0, not above 0 and at most 1");
    check_invalid({.name = "snapkv", .ratio = 1.5}, "ratio is 1.5, not above 0 and at most 1");
    check_invalid({.name = "snapkv", .ratio = std::nan("")},
                  "ratio is nan, not above 0 and at most 1");
    check_invalid({.name = "snapkv", .keep_mass = -1.0},
                  "keep_mass is -1, not above 0 and at most 1");
    check_invalid({.name = "snapkv", .bytes = 0}, "bytes is 0, not at least 1");
    check_invalid({.name = "snapkv", .capacity = 64, .ratio = 0.5},
                  "capacity and ratio are given: one size is enough");
    check_invalid({.name = "snapkv", .ratio = 0.5, .bytes = 1, .keep_mass = 0.5},
                  "ratio and bytes and keep_mass are given: one size is enough");

    auto const wide = resolve({.name = "snapkv", .window = 900, .ratio = 1.0});
    REQUIRE(wide);  // The default capacity of 512 is below this window, but nobody asked for it.
    CHECK(wide.value().capacity == 900);
}

TEST_CASE("keep_mass is refused where nothing ranks by attention") {
    for (char const* const name : {"snapkv", "pyramidkv", "dynamickv", "fullkv"})
        CHECK(resolve({.name = name, .keep_mass = 0.9}));
    check_invalid({.name = "streamingllm", .keep_mass = 0.9},
                  "keep_mass is 0.9, and streamingllm does not rank by attention: h2o, snapkv, "
                  "pyramidkv and dynamickv do");
}

TEST_CASE("a profile is checked when it is asked for, with the request's own alpha and floor") {
    auto const profile = std::make_shared<Profile>(
        Profile{.name = "tiny", .layers = 2, .heads = 1, .weights = {1, 2}, .alpha = 0.5});

    auto const own = resolve({.name = "dynamickv", .profile = profile});
    REQUIRE(own);
    CHECK(own.value().profile->alpha == 0.5);
    CHECK(own.value().profile->floor == 0);

    auto const other = resolve(
        {.name = "dynamickv", .profile = profile, .profile_alpha = 2.0, .profile_floor = 0.25});
    REQUIRE(other);
    CHECK(other.value().profile->alpha == 2);
    CHECK(other.value().profile->floor == 0.25);
    CHECK(other.value().profile->weights == profile->weights);
    CHECK(profile->alpha == 0.5);

    check_invalid({.name = "dynamickv", .profile = profile, .profile_alpha = 9.0},
                  "profile \"tiny\" has alpha 9, not in 0 … 8");
    check_invalid({.name = "dynamickv", .profile = profile, .profile_floor = -1.0},
                  "profile \"tiny\" has floor -1, not in 0 … 1");
    check_invalid({.name = "dynamickv", .profile_alpha = 1.0},
                  "profile_alpha is 1, but no profile is given");
    check_invalid({.name = "dynamickv", .profile_floor = 0.5},
                  "profile_floor is 0.5, but no profile is given");
}

TEST_CASE("a ratio becomes a capacity of the prompt, never below the window") {
    Geometry const geometry{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 8};
    auto const capacity = [&](double ratio, std::uint32_t tokens) {
        auto const params = resolve({.name = "snapkv", .window = 8, .ratio = ratio}).value();
        auto const result = sized(params, geometry, tokens);
        REQUIRE(result);
        CHECK_FALSE(result.value().ratio);
        return result.value().capacity;
    };
    CHECK(capacity(0.25, 1000) == 250);
    CHECK(capacity(0.29, 100) == 29);  // 28.999999999999996 in doubles.
    CHECK(capacity(0.1, 99) == 9);
    CHECK(capacity(0.001, 100) == 8);
    CHECK(capacity(1, 100) == 100);
}

TEST_CASE("bytes become the largest capacity that they hold") {
    // A token takes 2 layers * 2 heads * 8 numbers * 4 bytes, twice: 256 bytes.
    Geometry const geometry{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 8};
    auto const size = [&](std::uint64_t bytes) {
        return sized(resolve({.name = "streamingllm", .window = 8, .bytes = bytes}).value(),
                     geometry, 1000);
    };
    REQUIRE(geometry.cache_bytes(1) == 256);
    CHECK(size(256 * 40).value().capacity == 40);
    CHECK(size(256 * 41 - 1).value().capacity == 40);
    CHECK(size(256 * 8).value().capacity == 8);
    CHECK(size(256 * 10).value().sinks == 2);
    CHECK(size(~std::uint64_t{0}).value().capacity == 1000);
    auto const small = size(256 * 8 - 1);
    REQUIRE_FALSE(small);
    CHECK(small.error().code == ErrorCode::InvalidArgument);
    CHECK(small.error().message == "bytes is 2047, and the window of 8 tokens alone takes 2048");
}

TEST_CASE("a capacity and keep_mass stay as they are when a prompt is sized") {
    Geometry const geometry{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 8};
    auto const plain = resolve({.name = "dynamickv", .capacity = 64}).value();
    CHECK(sized(plain, geometry, 1000).value() == plain);
    auto const mass = resolve({.name = "dynamickv", .keep_mass = 0.5}).value();
    CHECK(sized(mass, geometry, 1000).value() == mass);
}

TEST_CASE("a profile of another model is refused when a prompt is sized") {
    auto const params_with = [](std::uint32_t layers, std::uint32_t heads) {
        auto profile = std::make_shared<Profile>(Profile{.name = "tiny",
                                                         .layers = layers,
                                                         .heads = heads,
                                                         .weights = {},
                                                         .alpha = 1,
                                                         .floor = 0});
        profile->weights.assign(std::size_t{layers} * heads, 1);
        return resolve({.name = "dynamickv", .profile = profile}).value();
    };
    Geometry const geometry{.layers = 2, .q_heads = 6, .kv_heads = 3, .head_dim = 8};
    CHECK(sized(params_with(2, 3), geometry, 1000));
    CHECK(sized(params_with(2, 1), geometry, 1000));
    for (auto const& [layers, heads] : {std::pair{3U, 3U}, std::pair{2U, 6U}, std::pair{1U, 1U}}) {
        auto const refused = sized(params_with(layers, heads), geometry, 1000);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == ErrorCode::InvalidArgument);
        CHECK(refused.error().message == "profile \"tiny\" is for " + std::to_string(layers) +
                                             " layers of " + std::to_string(heads) +
                                             " KV heads, not for 2 of 3: calibrate this model");
    }
}

TEST_CASE("a policy in words says its size as it was given") {
    auto const words = [](PolicyRequest const& request) {
        return in_words(resolve(request).value());
    };
    CHECK(words({.name = "snapkv"}) == "snapkv, capacity 512, window 32");
    CHECK(words({.name = "snapkv", .ratio = 0.25}) == "snapkv, ratio 0.25, window 32");
    CHECK(words({.name = "snapkv", .bytes = 4096}) == "snapkv, at most 4096 bytes, window 32");
    CHECK(words({.name = "snapkv", .keep_mass = 0.9}) == "snapkv, mass 0.9, window 32");
    auto const profile =
        std::make_shared<Profile>(Profile{.name = "tiny", .layers = 1, .heads = 1, .weights = {1}});
    CHECK(words({.name = "dynamickv", .profile = profile}) ==
          "dynamickv, capacity 512, window 32, profile tiny");
}
