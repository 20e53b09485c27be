#include <algorithm>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

namespace {

std::vector<std::uint32_t> pyramid(std::uint32_t layers,
                                   std::uint32_t base,
                                   std::uint32_t prefix,
                                   double beta) {
    auto params = params_of("pyramidkv", base + 4, 4);
    params.beta = beta;
    auto const policy = make_policy(params, shape_of(layers, 2, prefix + 4, 4));
    REQUIRE(policy);
    CHECK(policy->budgets_known());
    return layer_budgets(*policy);
}

using Tokens = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("pyramidkv goes straight down from the first layer to the last") {
    // min = 40 / 20 = 2, max = 80 - 2 = 78, step 19.
    CHECK(pyramid(5, 40, 1000, 20) == Tokens{78, 59, 40, 21, 2});
}

TEST_CASE("pyramidkv rounds so that the layers add up") {
    // 19, 13, 7, 1 are whole; over 5 layers the step is 4.5, and halves go to the lower layer
    // first.
    CHECK(pyramid(4, 10, 1000, 10) == Tokens{19, 13, 7, 1});
    CHECK(pyramid(5, 10, 1000, 10) == Tokens{19, 15, 10, 5, 1});
}

TEST_CASE("pyramidkv is less steep where the first layer would exceed the prompt") {
    // max would be 78 of 50: 50 at the top, so 30 at the bottom.
    CHECK(pyramid(5, 40, 50, 20) == Tokens{50, 45, 40, 35, 30});
    // The prefix is barely longer than the budget.
    CHECK(pyramid(3, 40, 41, 20) == Tokens{41, 40, 39});
}

TEST_CASE("pyramidkv of one layer gives it everything, of two layers the two ends") {
    CHECK(pyramid(1, 40, 1000, 20) == Tokens{40});
    CHECK(pyramid(2, 40, 1000, 20) == Tokens{78, 2});
}

TEST_CASE("pyramidkv with beta 1 is uniform") {
    CHECK(pyramid(4, 40, 1000, 1) == Tokens{40, 40, 40, 40});
}

TEST_CASE("pyramidkv with a base below beta leaves the last layer its window") {
    CHECK(pyramid(3, 5, 1000, 20) == Tokens{10, 5, 0});
    CHECK(pyramid(3, 0, 1000, 20) == Tokens{0, 0, 0});
}

TEST_CASE("pyramidkv never rises from one layer to the next") {
    for (std::uint32_t layers : {2U, 3U, 28U, 30U, 32U, 61U, 80U})
        for (std::uint32_t base : {0U, 1U, 7U, 96U, 480U, 2016U}) {
            CAPTURE(layers);
            CAPTURE(base);
            auto const budgets = pyramid(layers, base, 2500, 20);
            CHECK(std::ranges::is_sorted(budgets, std::greater<>()));
        }
}
