#include "sidecar/policy/allocate.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

// Products of a total (below 2^63) and a weight need more than 64 bits.
__extension__ using Wide = __int128;

constexpr Wide kWeightsMax = Wide{1} << 63U;

struct Share {
    std::size_t index = 0;
    std::uint64_t weight = 0;
    std::uint32_t lower = 0;
    std::uint32_t upper = 0;
    Wide remainder = 0;
};

/// Takes the shares that their bounds decide out of `open`, writes them, and returns what is left
/// of `left` for the others.
///
/// Each round clamps the proportional shares. When clamping hands out too much in sum, the common
/// factor can only fall, so those below their lower bound stay there for good; when too little,
/// those above their upper bound do. Every round settles at least one share.
Wide settle_clamped(Wide left, std::vector<Share>& open, std::span<std::uint32_t> shares) {
    while (true) {
        Wide weights = 0;
        for (Share const& share : open)
            weights += share.weight;

        // Everything times `weights`, so that no fraction is rounded.
        Wide overspent = 0;
        bool any_clamped = false;
        for (Share const& share : open) {
            Wide const ideal = left * share.weight;
            Wide const clamped = std::clamp(ideal, share.lower * weights, share.upper * weights);
            overspent += clamped - ideal;
            any_clamped = any_clamped || clamped != ideal;
        }
        if (!any_clamped) return left;

        Wide const before = left;
        auto const settled = [&](Share const& share) {
            Wide const ideal = before * share.weight;
            bool const at_lower = overspent >= 0 && ideal < share.lower * weights;
            bool const at_upper = overspent <= 0 && ideal > share.upper * weights;
            if (!at_lower && !at_upper) return false;
            shares[share.index] = at_lower ? share.lower : share.upper;
            left -= shares[share.index];
            return true;
        };
        open.erase(std::remove_if(open.begin(), open.end(), settled), open.end());
    }
}

/// Proportional shares of `total`, whole. The ideal shares lie within integer bounds, so neither
/// their floors nor, where there is a remainder, the next integers leave them.
void round_by_largest_remainder(Wide total,
                                std::vector<Share>& open,
                                std::span<std::uint32_t> out) {
    Wide weights = 0;
    for (Share const& share : open)
        weights += share.weight;

    Wide left = total;
    for (Share& share : open) {
        out[share.index] = static_cast<std::uint32_t>(total * share.weight / weights);
        share.remainder = total * share.weight % weights;
        left -= out[share.index];
    }
    std::stable_sort(open.begin(), open.end(),
                     [](Share const& a, Share const& b) { return a.remainder > b.remainder; });
    DKV_ASSERT(left >= 0 && left <= static_cast<Wide>(open.size()));
    for (std::size_t i = 0; i < static_cast<std::size_t>(left); ++i)
        ++out[open[i].index];
}

void divide(Wide total, std::vector<Share> open, std::span<std::uint32_t> shares) {
    Wide const left = settle_clamped(total, open, shares);
    if (open.empty())
        DKV_ASSERT(left == 0);
    else
        round_by_largest_remainder(left, open, shares);
}

}  // namespace

std::vector<std::uint32_t> allocate(std::uint64_t total,
                                    std::span<std::uint64_t const> weights,
                                    std::span<std::uint32_t const> lower,
                                    std::span<std::uint32_t const> upper) {
    DKV_ASSERT(lower.size() == weights.size() && upper.size() == weights.size());

    std::vector<Share> weighted;
    std::vector<Share> weightless;
    Wide weights_sum = 0;
    std::uint64_t weighted_upper = 0;
    std::uint64_t weightless_lower = 0;
    std::uint64_t weightless_upper = 0;
    std::uint64_t weighted_lower = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        DKV_ASSERT(lower[i] <= upper[i]);
        Share const share{.index = i, .weight = weights[i], .lower = lower[i], .upper = upper[i]};
        weights_sum += share.weight;
        (share.weight > 0 ? weighted : weightless).push_back(share);
        (share.weight > 0 ? weighted_lower : weightless_lower) += share.lower;
        (share.weight > 0 ? weighted_upper : weightless_upper) += share.upper;
    }
    DKV_ASSERT(weights_sum < kWeightsMax);
    DKV_ASSERT(weighted_lower + weightless_lower <= total);
    DKV_ASSERT(weighted_upper + weightless_upper >= total);

    std::vector<std::uint32_t> shares(lower.begin(), lower.end());
    if (weighted_upper + weightless_lower >= total) {
        divide(total - weightless_lower, std::move(weighted), shares);
    } else {
        for (Share const& share : weighted)
            shares[share.index] = share.upper;
        for (Share& share : weightless)
            share.weight = 1;
        divide(total - weighted_upper, std::move(weightless), shares);
    }
    return shares;
}

}  // namespace dkv
