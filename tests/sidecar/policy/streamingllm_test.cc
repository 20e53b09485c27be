#include <algorithm>
#include <numeric>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

TEST_CASE("streamingllm keeps the first tokens, then the most recent ones") {
    auto params = params_of("streamingllm", 7, 2);
    params.sinks = 2;
    auto const policy = make_policy(params, shape_of(2, 1, 10, 2));
    REQUIRE(policy);

    CHECK(policy->ranking() == Ranking::Positions);
    CHECK(policy->ranked_positions() == std::vector<std::int32_t>{0, 1, 7, 6, 5, 4, 3, 2});
    CHECK(policy->budgets_known());
    CHECK(layer_budgets(*policy) == std::vector<std::uint32_t>{5, 5});
}

TEST_CASE("streamingllm without sinks keeps a sliding window") {
    auto params = params_of("streamingllm", 4, 2);
    params.sinks = 0;
    auto const policy = make_policy(params, shape_of(1, 1, 6, 2));
    REQUIRE(policy);

    CHECK(policy->ranked_positions() == std::vector<std::int32_t>{3, 2, 1, 0});
}

TEST_CASE("streamingllm whose sinks are all it may keep takes no recent token") {
    auto params = params_of("streamingllm", 5, 2);
    params.sinks = 3;
    auto const policy = make_policy(params, shape_of(1, 1, 6, 2));
    REQUIRE(policy);

    CHECK(policy->ranked_positions() == std::vector<std::int32_t>{0, 1, 2, 3});
    CHECK(policy->stage_limits(0).front() == 3);
}

TEST_CASE("streamingllm ranks every prefix position once") {
    auto const policy = make_policy(params_of("streamingllm", 64, 32), shape_of(4, 2, 1000, 32));
    REQUIRE(policy);

    auto positions = policy->ranked_positions();
    std::ranges::sort(positions);
    std::vector<std::int32_t> every(968);
    std::iota(every.begin(), every.end(), 0);
    CHECK(positions == every);
}
