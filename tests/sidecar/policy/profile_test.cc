#include "sidecar/policy/profile.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "sidecar/policy/profile_budgets.h"
#include "tests/sidecar/policy/support.h"
#include "tests/support/results.h"

using namespace dkv;

namespace {

using Tokens = std::vector<std::uint32_t>;

Profile profile_of(std::uint32_t layers,
                   std::uint32_t heads,
                   std::vector<double> weights,
                   double alpha = 1,
                   double floor = 0) {
    return {"tiny", layers, heads, std::move(weights), alpha, floor};
}

/// Layer after layer, head after head.
Tokens budgets_of(Profile const& profile,
                  std::uint32_t base,
                  std::uint32_t prefix,
                  std::uint32_t kv_heads = 1) {
    auto const budgets =
        profile_budgets(profile, base, shape_of(profile.layers, kv_heads, prefix + 4, 4));
    Tokens tokens;
    for (std::uint32_t layer = 0; layer < budgets.layers(); ++layer)
        for (std::uint32_t const budget : budgets.layer(layer))
            tokens.push_back(budget);
    return tokens;
}

std::string refusal(Profile const& profile) {
    auto const checked = check(profile);
    REQUIRE_FALSE(checked);
    CHECK(checked.error().code == ErrorCode::InvalidArgument);
    return checked.error().message;
}

}  // namespace

TEST_CASE("a profile's budgets are in proportion to weight to the power of alpha") {
    CHECK(budgets_of(profile_of(2, 1, {1, 3}), 10, 100) == Tokens{5, 15});
    CHECK(budgets_of(profile_of(4, 1, {1, 4, 9, 16}, 0.5), 10, 100) == Tokens{4, 8, 12, 16});
    CHECK(budgets_of(profile_of(2, 2, {1, 3, 4, 8}), 4, 100, 2) == Tokens{1, 3, 4, 8});
    // What the weights are measured in does not matter.
    CHECK(budgets_of(profile_of(2, 1, {1e-300, 3e-300}), 10, 100) == Tokens{5, 15});
}

TEST_CASE("a profile per layer gives every head of a layer the same") {
    CHECK(budgets_of(profile_of(2, 1, {1, 3}), 4, 100, 3) == Tokens{2, 2, 2, 6, 6, 6});
}

TEST_CASE("a profile's floor is rounded up, and comes out of what the others get") {
    // 5 to the first; 35 to the others by 2 : 3 : 4, the fractions to the largest remainders.
    CHECK(budgets_of(profile_of(4, 1, {1, 4, 9, 16}, 0.5, 0.5), 10, 100) == Tokens{5, 8, 12, 15});
    CHECK(budgets_of(profile_of(2, 1, {0, 1}, 1, 0.07), 100, 1000) == Tokens{7, 193});
    CHECK(budgets_of(profile_of(2, 1, {0, 1}, 1, 0.071), 100, 1000) == Tokens{8, 192});
    CHECK(budgets_of(profile_of(2, 1, {0, 1}, 1, 1), 10, 100) == Tokens{10, 10});
}

TEST_CASE("a profile gives no head more than the prompt has; the others get what is over") {
    CHECK(budgets_of(profile_of(4, 1, {1, 4, 9, 16}, 0.5), 10, 14) == Tokens{4, 9, 13, 14});
    CHECK(budgets_of(profile_of(2, 1, {0, 1}), 10, 100) == Tokens{0, 20});
    CHECK(budgets_of(profile_of(2, 1, {0, 1}), 10, 15) == Tokens{5, 15});
    CHECK(budgets_of(profile_of(3, 1, {5, 1, 1}), 10, 10) == Tokens{10, 10, 10});
}

TEST_CASE("alpha 0 makes everybody alike, those without a weight too") {
    CHECK(budgets_of(profile_of(3, 1, {0, 1, 100}, 0), 7, 100) == Tokens{7, 7, 7});
}

TEST_CASE("a profile with nothing to give gives nothing") {
    CHECK(budgets_of(profile_of(2, 1, {1, 3}, 1, 0.5), 0, 1) == Tokens{0, 0});
}

TEST_CASE("dynamickv with a profile knows its budgets before the first layer") {
    auto params = params_of("dynamickv", 14, 4);
    params.granularity = Granularity::LayerHead;  // Says nothing then, nor does r_max.
    params.r_max = 1;
    params.profile = std::make_shared<Profile>(profile_of(2, 2, {1, 3, 4, 8}));

    auto const policy = make_policy(params, shape_of(2, 2, 104, 4));

    REQUIRE(policy);
    CHECK(policy->budgets_known());
    CHECK(policy->budgets_known_by_layer());
    CHECK_FALSE(policy->tally_total(1));
    CHECK_FALSE(policy->wants_mass());
    CHECK(policy->budgets() == profile_budgets(*params.profile, 10, shape_of(2, 2, 104, 4)));
    CHECK(policy->budgets().total() == 40);
    CHECK(policy->stage_limits(1)[1] == policy->budgets().layer(1)[1]);
}

TEST_CASE("a profile that is none is refused by the value at fault") {
    double const nan = std::nan("");
    double const infinity = std::numeric_limits<double>::infinity();
    REQUIRE(check(profile_of(2, 2, {0, 0, 0, 1}, 8, 1)));
    CHECK(refusal(profile_of(0, 1, {})) == "profile \"tiny\" has 0 layers of 1 heads");
    CHECK(refusal(profile_of(1, 0, {})) == "profile \"tiny\" has 1 layers of 0 heads");
    CHECK(refusal(profile_of(2, 2, {1, 2, 3})) ==
          "profile \"tiny\" has 3 weights for 2 layers of 2 heads");
    CHECK(refusal(profile_of(2, 1, {1, -0.5})) == "profile \"tiny\" has a weight of -0.5 at 1");
    CHECK(refusal(profile_of(2, 1, {nan, 1})) == "profile \"tiny\" has a weight of nan at 0");
    CHECK(refusal(profile_of(2, 1, {infinity, 1})) == "profile \"tiny\" has a weight of inf at 0");
    CHECK(refusal(profile_of(2, 1, {0, 0})) == "profile \"tiny\" has no weight above 0");
    CHECK(refusal(profile_of(1, 1, {1}, -1)) == "profile \"tiny\" has alpha -1, not in 0 … 8");
    CHECK(refusal(profile_of(1, 1, {1}, 8.5)) == "profile \"tiny\" has alpha 8.5, not in 0 … 8");
    CHECK(refusal(profile_of(1, 1, {1}, nan)) == "profile \"tiny\" has alpha nan, not in 0 … 8");
    CHECK(refusal(profile_of(1, 1, {1}, 1, 1.1)) == "profile \"tiny\" has floor 1.1, not in 0 … 1");
    CHECK(refusal(profile_of(1, 1, {1}, 1, -0.1)) ==
          "profile \"tiny\" has floor -0.1, not in 0 … 1");
}
