#include "sidecar/policy/allocate.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"

using namespace dkv;

namespace {

using Weights = std::vector<std::uint64_t>;
using Tokens = std::vector<std::uint32_t>;

std::uint64_t sum(Tokens const& tokens) {
    return std::accumulate(tokens.begin(), tokens.end(), std::uint64_t{0});
}

Tokens allocate_between(std::uint64_t total,
                        Weights const& weights,
                        std::uint32_t lower,
                        std::uint32_t upper) {
    return allocate(total, weights, Tokens(weights.size(), lower), Tokens(weights.size(), upper));
}

}  // namespace

TEST_CASE("allocate divides in proportion where that is whole") {
    CHECK(allocate_between(12, {1, 2, 3}, 0, 100) == Tokens{2, 4, 6});
}

TEST_CASE("allocate gives fractions to the largest remainder") {
    // 10 * {1, 2, 4} / 7 = 1.43, 2.86, 5.71: two tokens are left after flooring.
    CHECK(allocate_between(10, {1, 2, 4}, 0, 100) == Tokens{1, 3, 6});
}

TEST_CASE("allocate gives equal remainders to the lower index") {
    CHECK(allocate_between(5, {1, 1, 1}, 0, 100) == Tokens{2, 2, 1});
    CHECK(allocate_between(1, {7, 7}, 0, 100) == Tokens{1, 0});
}

TEST_CASE("allocate passes on what a full share cannot take, in proportion") {
    // 100 * 8/10 = 80 is cut to 40; the other 60 go 1 : 1.
    CHECK(allocate_between(100, {8, 1, 1}, 0, 40) == Tokens{40, 30, 30});
    // Passing on fills the next share too.
    CHECK(allocate_between(100, {80, 15, 5}, 0, 40) == Tokens{40, 40, 20});
}

TEST_CASE("allocate takes what a share must have from the others, in proportion") {
    // 100 * {90, 9, 1} / 100: the last is raised to 10, and 90 remain for 10 : 1.
    CHECK(allocate_between(100, {90, 9, 1}, 10, 100) == Tokens{80, 10, 10});
    CHECK(allocate(100, Weights{60, 30, 10}, Tokens{0, 0, 40}, Tokens{100, 100, 100}) ==
          Tokens{40, 20, 40});
}

TEST_CASE("allocate finds the factor when both bounds bite") {
    // Full: 50. The rest, 50 of 3 : 1 with a floor of 20 for the last, is 30 and 20.
    CHECK(allocate_between(100, {100, 3, 1}, 20, 50) == Tokens{50, 30, 20});
}

TEST_CASE("allocate keeps weightless shares at their lower bound while others can take the total") {
    CHECK(allocate_between(20, {0, 1, 0, 1}, 2, 10) == Tokens{2, 8, 2, 8});
}

TEST_CASE("allocate raises weightless shares to a common level when the others are full") {
    CHECK(allocate_between(20, {5, 0, 0}, 0, 10) == Tokens{10, 5, 5});
    CHECK(allocate(20, Weights{5, 0, 0}, Tokens{0, 0, 8}, Tokens{10, 10, 10}) == Tokens{10, 2, 8});
}

TEST_CASE("allocate divides evenly when nothing has weight") {
    CHECK(allocate_between(10, {0, 0, 0, 0}, 0, 9) == Tokens{3, 3, 2, 2});
}

TEST_CASE("allocate of the sum of the bounds is the bounds") {
    CHECK(allocate(9, Weights{9, 0, 1}, Tokens{2, 3, 4}, Tokens{5, 6, 7}) == Tokens{2, 3, 4});
    CHECK(allocate(18, Weights{9, 0, 1}, Tokens{2, 3, 4}, Tokens{5, 6, 7}) == Tokens{5, 6, 7});
    CHECK(allocate(0, Weights{}, Tokens{}, Tokens{}).empty());
}

TEST_CASE("allocate does not overflow with the largest counts and caches") {
    std::uint64_t const weight = (std::uint64_t{1} << 63U) / 1024 - 1;
    Weights const weights(1024, weight);
    std::uint32_t const all = 0xFFFFFFFF;

    CHECK(allocate_between(std::uint64_t{all} * 1024, weights, 0, all) == Tokens(1024, all));
    CHECK(allocate_between(std::uint64_t{1024} * 1'000'000'007, weights, 0, all) ==
          Tokens(1024, 1'000'000'007));
}

TEST_CASE("allocate is exact, within bounds, and fair for random shares") {
    std::uint32_t const seed = 20240611;
    INFO("seed " << seed);
    std::mt19937 random(seed);

    for (int round = 0; round < 20'000; ++round) {
        CAPTURE(round);
        std::size_t const count = 1 + below(random, 12);
        std::uint32_t const scale = std::array{2U, 10U, 1000U, 4'000'000U}[below(random, 4)];
        Weights weights(count);
        Tokens lower(count);
        Tokens upper(count);
        for (std::size_t i = 0; i < count; ++i) {
            weights[i] = below(random, 3) == 0
                             ? 0
                             : below(random, scale) * std::uint64_t{1 + below(random, scale)};
            lower[i] = below(random, scale);
            upper[i] = lower[i] + (below(random, 4) == 0 ? 0 : below(random, scale));
        }
        auto const room = static_cast<std::uint32_t>(sum(upper) - sum(lower));
        std::uint64_t const total = sum(lower) + below(random, room + 1);

        Tokens const shares = allocate(total, weights, lower, upper);

        REQUIRE(sum(shares) == total);
        bool within = true;
        for (std::size_t i = 0; i < count; ++i)
            within = within && shares[i] >= lower[i] && shares[i] <= upper[i];
        REQUIRE(within);
        bool fair = true;
        // One common factor: where i has room and j could give, i is not worse off by a whole
        // token.
        for (std::size_t i = 0; i < count; ++i)
            for (std::size_t j = 0; j < count; ++j) {
                if (shares[i] == upper[i] || shares[j] == lower[j]) continue;
                double const wi = static_cast<double>(weights[i]);
                double const wj = static_cast<double>(weights[j]);
                // shares[i] + 1 over w_i reaches at least shares[j] - 1 over w_j.
                fair = fair && (shares[i] + 1.0) * wj >= (shares[j] - 1.0) * wi * (1 - 1e-12);
            }
        REQUIRE(fair);
    }
}
