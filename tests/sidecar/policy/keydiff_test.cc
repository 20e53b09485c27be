#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

TEST_CASE("keydiff ranks by how little keys are alike, as much in every layer and head") {
    auto const policy = make_policy(params_of("keydiff", 40, 32), shape_of(3, 2, 1000, 32));
    REQUIRE(policy);

    CHECK(policy->ranking() == Ranking::KeyDifference);
    CHECK(policy->budgets_known());
    CHECK(policy->budgets() == HeadBudgets(3, 2, 8));
    CHECK_FALSE(policy->tally_total(2));
}
