#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

TEST_CASE("h2o ranks by the attention of all queries, as much in every layer and head") {
    auto const policy = make_policy(params_of("h2o", 40, 32), shape_of(3, 2, 1000, 32));
    REQUIRE(policy);

    CHECK(policy->ranking() == Ranking::Accumulated);
    CHECK(policy->budgets_known());
    CHECK(policy->budgets() == HeadBudgets(3, 2, 8));
    CHECK_FALSE(policy->tally_total(2));
}
