#include "sidecar/policy/profile.h"

#include <algorithm>
#include <cmath>

#include "sidecar/policy/text.h"

namespace dkv {
namespace {

constexpr double kAlphaMax = 8;
constexpr std::uint32_t kProfileKernelMax = 63;
constexpr std::uint32_t kHeadsMax = 4096;  // So that the count of weights fits in 64 bits.
constexpr std::uint32_t kHeadDimMax = 65536;

Error wrong(Profile const& profile, std::string const& why) {
    return Error{ErrorCode::InvalidArgument, "profile \"" + profile.name + "\" " + why};
}

Result<void> check_surrogate(Profile const& profile, Surrogate const& surrogate) {
    std::size_t const wanted =
        std::size_t{profile.layers} * surrogate.kv_heads * surrogate.features();
    bool const possible = surrogate.kv_heads > 0 && surrogate.kv_heads <= kHeadsMax &&
                          surrogate.head_dim > 0 && surrogate.head_dim <= kHeadDimMax;
    if (!possible || surrogate.weights.size() != wanted)
        return wrong(profile, "has a surrogate of " + std::to_string(surrogate.weights.size()) +
                                  " weights for " + std::to_string(profile.layers) + " layers of " +
                                  std::to_string(surrogate.kv_heads) + " KV heads of " +
                                  std::to_string(surrogate.head_dim) + " dimensions, which take " +
                                  std::to_string(wanted));
    if (profile.heads != 1 && profile.heads != surrogate.kv_heads)
        return wrong(profile, "has weights of " + std::to_string(profile.heads) +
                                  " heads and a surrogate of " +
                                  std::to_string(surrogate.kv_heads));
    if (2 * surrogate.frequencies.size() > surrogate.head_dim)
        return wrong(profile,
                     "has a surrogate with " + std::to_string(surrogate.frequencies.size()) +
                         " frequencies for " + std::to_string(surrogate.head_dim) + " dimensions");
    for (auto const* const numbers : {&surrogate.weights, &surrogate.frequencies})
        if (!std::ranges::all_of(*numbers, [](float number) { return std::isfinite(number); }))
            return wrong(profile, "has a surrogate with a number that is not finite");
    return {};
}

}  // namespace

Surrogate reordered(Surrogate const& surrogate, bool interleaved) {
    Surrogate result = surrogate;
    result.interleaved = interleaved;
    if (interleaved == surrogate.interleaved) return result;
    std::size_t const pairs = surrogate.frequencies.size();
    std::size_t const features = surrogate.features();
    for (std::size_t row = 0; row < surrogate.weights.size(); row += features)
        for (std::size_t head = 0; head < surrogate.kv_heads; ++head)
            for (std::size_t i = 0; i < pairs; ++i) {
                std::size_t const key = row + head * surrogate.head_dim;
                std::size_t const halves[] = {key + i, key + pairs + i};
                std::size_t const adjacent[] = {key + 2 * i, key + 2 * i + 1};
                for (std::size_t which = 0; which < 2; ++which)
                    if (interleaved)
                        result.weights[adjacent[which]] = surrogate.weights[halves[which]];
                    else
                        result.weights[halves[which]] = surrogate.weights[adjacent[which]];
            }
    return result;
}

std::shared_ptr<Profile const> interleaved(std::shared_ptr<Profile const> profile) {
    if (!profile || !profile->surrogate || profile->surrogate->interleaved) return profile;
    auto turned = std::make_shared<Profile>(*profile);
    turned->surrogate = std::make_shared<Surrogate const>(reordered(*profile->surrogate, true));
    return turned;
}

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
    if (profile.surrogate) DKV_TRY(check_surrogate(profile, *profile.surrogate));
    return {};
}

}  // namespace dkv
