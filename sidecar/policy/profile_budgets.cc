#include "sidecar/policy/profile_budgets.h"

#include <algorithm>
#include <cmath>

#include "protocol/base/assert.h"
#include "sidecar/policy/allocate.h"
#include "sidecar/policy/rounding.h"

namespace dkv {
namespace {

constexpr double kUnit = 4294967296.0;  // 2^32: below 2^31 of them add up to less than 2^63.

std::vector<std::uint64_t> integers(Profile const& profile) {
    double const largest = std::ranges::max(profile.weights);
    std::vector<std::uint64_t> result;
    for (double const weight : profile.weights)
        result.push_back(static_cast<std::uint64_t>(
            std::nearbyint(kUnit * std::pow(weight / largest, profile.alpha))));
    return result;
}

}  // namespace

HeadBudgets profile_budgets(Profile const& profile, std::uint32_t base, PromptShape const& shape) {
    DKV_ASSERT(profile.layers == shape.layers);
    DKV_ASSERT(profile.heads == shape.kv_heads || profile.heads == 1);
    DKV_ASSERT(base <= shape.prefix());

    std::size_t const count = profile.weights.size();
    std::vector<std::uint32_t> const lower(count, least_tokens(profile.floor, base));
    std::vector<std::uint32_t> const upper(count, shape.prefix());
    auto const shares = allocate(std::uint64_t{base} * count, integers(profile), lower, upper);

    HeadBudgets budgets(shape.layers, shape.kv_heads, 0);
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
        for (std::uint32_t head = 0; head < shape.kv_heads; ++head)
            budgets.layer(layer)[head] =
                shares[std::size_t{layer} * profile.heads + (profile.heads == 1 ? 0 : head)];
    return budgets;
}

}  // namespace dkv
