#include "sidecar/policy/profile.h"

#include <algorithm>
#include <cmath>

#include "sidecar/policy/text.h"

namespace dkv {
namespace {

constexpr double kAlphaMax = 8;
constexpr std::uint32_t kProfileKernelMax = 63;

Error wrong(Profile const& profile, std::string const& why) {
    return Error{ErrorCode::InvalidArgument, "profile \"" + profile.name + "\" " + why};
}

}  // namespace

Result<void> check(Profile const& profile) {
    if (profile.layers == 0 || profile.heads == 0)
        return wrong(profile, "has " + std::to_string(profile.layers) + " layers of " +
                                  std::to_string(profile.heads) + " heads");
    if (profile.weights.size() != std::size_t{profile.layers} * profile.heads)
        return wrong(profile, "has " + std::to_string(profile.weights.size()) + " weights for " +
                                  std::to_string(profile.layers) + " layers of " +
                                  std::to_string(profile.heads) + " heads");
    auto const bad = std::ranges::find_if(
        profile.weights, [](double weight) { return !(std::isfinite(weight) && weight >= 0); });
    if (bad != profile.weights.end())
        return wrong(profile, "has a weight of " + text(*bad) + " at " +
                                  std::to_string(bad - profile.weights.begin()));
    if (std::ranges::max(profile.weights) == 0) return wrong(profile, "has no weight above 0");
    if (!(profile.alpha >= 0 && profile.alpha <= kAlphaMax))
        return wrong(profile, "has alpha " + text(profile.alpha) + ", not in 0 … 8");
    if (!(profile.floor >= 0 && profile.floor <= 1))
        return wrong(profile, "has floor " + text(profile.floor) + ", not in 0 … 1");
    if (profile.kernel != 0 && (profile.kernel % 2 == 0 || profile.kernel > kProfileKernelMax))
        return wrong(profile, "has kernel " + text(profile.kernel) + ", not an odd number in 1 … " +
                                  text(kProfileKernelMax));
    return {};
}

}  // namespace dkv
