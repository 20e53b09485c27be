#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

TEST_CASE("snapkv gives every layer and head the same") {
    auto const policy = make_policy(params_of("snapkv", 40, 32), shape_of(3, 2, 1000, 32));
    REQUIRE(policy);

    CHECK(policy->ranking() == Ranking::Scores);
    CHECK(policy->budgets_known());
    CHECK(policy->budgets() == HeadBudgets(3, 2, 8));
    CHECK(policy->budgets().total() == 3 * 2 * 8);
    CHECK_FALSE(policy->tally_total(2));
}
