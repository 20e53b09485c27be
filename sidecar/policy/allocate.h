// Dividing tokens: whole shares that add up to the last token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dkv {

/// Shares of `total` in proportion to `weights`, each within its [lower, upper], adding up to
/// exactly `total`. All spans have one entry per share.
///
/// Water-filling: there is one factor f such that share i is f * weight i, clamped to its bounds;
/// what a clamped share cannot take (or must have) goes to (or comes from) the others. Shares of
/// weight 0 stay at their lower bound as long as the others can take the total, and then rise to a
/// common level. Fractions go by largest remainder, ties to the lower index: never beyond a bound.
/// Integers only, so the same everywhere.
///
/// Requires Σ lower <= total <= Σ upper, lower <= upper, and Σ weights < 2^63.
std::vector<std::uint32_t> allocate(std::uint64_t total,
                                    std::span<std::uint64_t const> weights,
                                    std::span<std::uint32_t const> lower,
                                    std::span<std::uint32_t const> upper);

}  // namespace dkv
