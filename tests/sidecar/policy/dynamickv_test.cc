#include <numeric>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

namespace {

using Tokens = std::vector<std::uint32_t>;
using Counts = std::vector<std::uint64_t>;

/// base 10, r_max 3 (so 30 staged), r_min 0.1 (so at least 1), m 2, one KV head, N 100.
std::unique_ptr<Policy> small_policy(std::uint32_t layers, std::uint32_t kv_heads = 1) {
    auto params = params_of("dynamickv", 14, 4);
    params.r_max = 3;
    params.update_interval = 2;
    return make_policy(params, shape_of(layers, kv_heads, 104, 4));
}

Tokens heads_of(Policy const& policy, std::uint32_t layer) {
    auto const budgets = policy.budgets().layer(layer);
    return {budgets.begin(), budgets.end()};
}

}  // namespace

TEST_CASE("dynamickv stages r_max times the base in every layer") {
    auto const policy = small_policy(4);
    REQUIRE(policy);

    CHECK(policy->ranking() == Ranking::Scores);
    CHECK_FALSE(policy->budgets_known());
    CHECK(layer_budgets(*policy) == Tokens{30, 30, 30, 30});
    CHECK(policy->stage_limits(3).front() == 30);
}

TEST_CASE("dynamickv stages no more than the prefix, and rounds r_max down but not by an error") {
    auto params = params_of("dynamickv", 104, 4);
    params.r_max = 1.15;  // 1.15 * 100 is 114.99999999999999 in doubles.
    CHECK(make_policy(params, shape_of(2, 1, 1004, 4))->stage_limits(0).front() == 115);
    CHECK(make_policy(params, shape_of(2, 1, 114, 4))->stage_limits(0).front() == 110);
    params.r_max = 1e300;
    CHECK(make_policy(params, shape_of(2, 1, 1004, 4))->stage_limits(0).front() == 1000);
}

TEST_CASE("dynamickv updates after every m-th layer and after the last one") {
    auto const policy = small_policy(5, 3);
    REQUIRE(policy);

    CHECK_FALSE(policy->tally_total(0));
    CHECK(policy->tally_total(1) == 10 * 3 * 2);
    CHECK_FALSE(policy->tally_total(2));
    CHECK(policy->tally_total(3) == 10 * 3 * 4);
    CHECK(policy->tally_total(4) == 10 * 3 * 5);
}

TEST_CASE("dynamickv gives layers what the counts say") {
    auto const policy = small_policy(4);
    REQUIRE(policy);

    policy->rebalance(4, Counts{4, 8, 16, 12});

    CHECK(layer_budgets(*policy) == Tokens{4, 8, 16, 12});
}

TEST_CASE("dynamickv leaves layers alone while all they hold is within the budget of all layers") {
    // 4 layers share 40 tokens; one layer of 30 is below that, two are not.
    auto const policy = small_policy(4);
    REQUIRE(policy);

    policy->rebalance(1, Counts{10});
    CHECK(layer_budgets(*policy) == Tokens{30, 30, 30, 30});

    policy->rebalance(2, Counts{10, 30});
    CHECK(layer_budgets(*policy) == Tokens{10, 30, 30, 30});
}

TEST_CASE("dynamickv never gives back what a layer has dropped") {
    auto const policy = small_policy(4);
    REQUIRE(policy);
    policy->rebalance(2, Counts{10, 30});

    // By counts the first layer would get 37 of 40, but it has 10 left; 30 go to the others by 1
    // : 2.
    policy->rebalance(4, Counts{37, 0, 1, 2});

    CHECK(layer_budgets(*policy) == Tokens{10, 1, 10, 19});
}

TEST_CASE("dynamickv passes what one layer cannot take to the others") {
    auto const policy = small_policy(4);
    REQUIRE(policy);

    policy->rebalance(4, Counts{400, 0, 0, 0});

    // 30 to the first; nothing else has weight, so the rest rises evenly.
    CHECK(layer_budgets(*policy) == Tokens{30, 4, 3, 3});
}

TEST_CASE("dynamickv leaves no layer below its minimum") {
    auto const policy = small_policy(4);
    REQUIRE(policy);

    policy->rebalance(4, Counts{200, 200, 0, 0});

    CHECK(layer_budgets(*policy) == Tokens{19, 19, 1, 1});
}

TEST_CASE("dynamickv rounds the minimum up, but not by an error") {
    auto params = params_of("dynamickv", 104, 4);
    params.r_min = 0.07;  // 0.07 * 100 is 7.000000000000001 in doubles.
    auto const seven = make_policy(params, shape_of(2, 1, 1004, 4));
    seven->rebalance(2, Counts{1, 0});
    CHECK(layer_budgets(*seven) == Tokens{193, 7});

    params.r_min = 0.071;
    auto const eight = make_policy(params, shape_of(2, 1, 1004, 4));
    eight->rebalance(2, Counts{1, 0});
    CHECK(layer_budgets(*eight) == Tokens{192, 8});

    params.r_min = 0;
    auto const zero = make_policy(params, shape_of(2, 1, 1004, 4));
    zero->rebalance(2, Counts{1, 0});
    CHECK(layer_budgets(*zero) == Tokens{200, 0});
}

TEST_CASE("dynamickv without any count is uniform") {
    auto const policy = small_policy(4);
    REQUIRE(policy);

    policy->rebalance(4, Counts{0, 0, 0, 0});

    CHECK(layer_budgets(*policy) == Tokens{10, 10, 10, 10});
}

TEST_CASE("dynamickv gives all heads of a layer the same, by the sum of their counts") {
    auto const policy = small_policy(2, 2);
    REQUIRE(policy);

    policy->rebalance(2, Counts{1, 5, 0, 2});

    CHECK(policy->budgets().layer(0)[0] == 15);
    CHECK(policy->budgets().layer(0)[1] == 15);
    CHECK(policy->budgets().layer(1)[0] == 5);
    CHECK(policy->budgets().layer(1)[1] == 5);
}

TEST_CASE("dynamickv that may stage only the mean knows its budgets beforehand") {
    auto params = params_of("dynamickv", 14, 4);
    params.r_max = 1;
    auto const uniform = make_policy(params, shape_of(4, 1, 104, 4));
    CHECK(uniform->budgets_known());
    CHECK_FALSE(uniform->tally_total(3));
    CHECK(layer_budgets(*uniform) == Tokens{10, 10, 10, 10});

    auto const only_window = make_policy(params_of("dynamickv", 4, 4), shape_of(4, 1, 104, 4));
    CHECK(only_window->budgets_known());
    CHECK(layer_budgets(*only_window) == Tokens{0, 0, 0, 0});
}

TEST_CASE("dynamickv per layer and head gives every head what its own counts say") {
    auto params = params_of("dynamickv", 14, 4);
    params.r_max = 3;
    params.granularity = Granularity::LayerHead;
    auto const policy = make_policy(params, shape_of(2, 2, 104, 4));
    REQUIRE(policy);
    CHECK(policy->tally_total(1) == 40);
    CHECK_FALSE(policy->budgets_known_by_layer());

    policy->rebalance(2, Counts{10, 5, 0, 25});

    CHECK(heads_of(*policy, 0) == Tokens{10, 5});
    CHECK(heads_of(*policy, 1) == Tokens{1, 24});  // At least r_min of the base, a token.
}

TEST_CASE("dynamickv per layer and head updates on the way, within what is staged") {
    auto params = params_of("dynamickv", 14, 4);
    params.r_max = 3;
    params.r_min = 0;
    params.update_interval = 1;
    params.granularity = Granularity::LayerHead;
    auto const policy = make_policy(params, shape_of(2, 2, 104, 4));
    REQUIRE(policy);
    CHECK(policy->tally_total(0) == 20);

    // 60 are staged, 40 is the budget of all.
    policy->rebalance(1, Counts{5, 15});
    CHECK(heads_of(*policy, 0) == Tokens{10, 30});
    CHECK(heads_of(*policy, 1) == Tokens{30, 30});
    policy->rebalance(2, Counts{30, 0, 5, 5});

    // By counts 30, 0, 5, 5; the first has 10 left, and a head without counts gets the rest only
    // when the others are full.
    CHECK(heads_of(*policy, 0) == Tokens{10, 0});
    CHECK(heads_of(*policy, 1) == Tokens{15, 15});
}

TEST_CASE("dynamickv per head shares each layer's budget by that layer's counts alone") {
    auto params = params_of("dynamickv", 14, 4);
    params.r_max = 3;
    params.granularity = Granularity::Head;
    auto const policy = make_policy(params, shape_of(3, 2, 104, 4));
    REQUIRE(policy);
    CHECK_FALSE(policy->budgets_known());
    CHECK(policy->budgets_known_by_layer());
    for (std::uint32_t layer = 0; layer < 3; ++layer) {
        CHECK(policy->tally_total(layer) == 20);
        CHECK(policy->tally_from(layer) == layer);
        CHECK(policy->stage_limits(layer)[1] == 30);
    }

    policy->rebalance(1, Counts{15, 5});
    CHECK(heads_of(*policy, 0) == Tokens{15, 5});
    CHECK(heads_of(*policy, 1) == Tokens{30, 30});
    policy->rebalance(2, Counts{20, 0});
    policy->rebalance(3, Counts{0, 0});

    CHECK(heads_of(*policy, 0) == Tokens{15, 5});
    CHECK(heads_of(*policy, 1) == Tokens{19, 1});
    CHECK(heads_of(*policy, 2) == Tokens{10, 10});
    CHECK(policy->stage_limits(1)[1] == 30);  // A layer may be ranked again after a failure.
}

TEST_CASE("dynamickv per head with one head has nothing to share") {
    auto params = params_of("dynamickv", 14, 4);
    params.granularity = Granularity::Head;
    auto const policy = make_policy(params, shape_of(3, 1, 104, 4));
    CHECK(policy->budgets_known());
    CHECK(layer_budgets(*policy) == Tokens{10, 10, 10});
}
