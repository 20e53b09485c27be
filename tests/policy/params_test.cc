#include "sidecar/policy/params.h"

#include <limits>

#include <doctest/doctest.h>

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
                  "no policy is called \"dynamicvk\"; there are fullkv, streamingllm, snapkv, "
                  "pyramidkv, dynamickv");
    CHECK(resolve({.name = ""}).error().code == ErrorCode::NotFound);
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
