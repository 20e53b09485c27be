#include "sidecar/policy/params.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "sidecar/policy/policy.h"

namespace dkv {
namespace {

constexpr std::uint32_t kWindowMax = 1024;
constexpr std::uint32_t kKernelMax = 63;

/// "0.1", "inf": as short as it can be told.
std::string text(double value) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%g", value);
    return buffer.data();
}
std::string text(std::uint32_t value) {
    return std::to_string(value);
}

template <class T>
Error refusal(char const* name, T value, std::string const& expected) {
    return Error{ErrorCode::InvalidArgument,
                 std::string(name) + " is " + text(value) + ", " + expected};
}

Result<void> check_name(std::string const& name) {
    std::string known;
    for (PolicyEntry const& entry : policies()) {
        if (entry.name == name) return {};
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    return Error{ErrorCode::NotFound, "no policy is called \"" + name + "\"; there are " + known};
}

Result<void> check(PolicyParams const& params) {
    if (params.window < 1 || params.window > kWindowMax)
        return refusal("window", params.window, "not in 1 … " + text(kWindowMax));
    if (params.capacity < params.window)
        return refusal(
            "capacity", params.capacity,
            "below the window of " + text(params.window) + " tokens that are always kept");
    if (params.kernel % 2 == 0 || params.kernel > kKernelMax)
        return refusal("kernel", params.kernel, "not an odd number in 1 … " + text(kKernelMax));
    if (params.reduce == GroupReduce::None)
        return Error{ErrorCode::InvalidArgument, "reduce is none, not mean, max or sum"};
    if (!std::isfinite(params.r_max) || params.r_max < 1)
        return refusal("r_max", params.r_max, "not a number of at least 1");
    if (!(params.r_min >= 0 && params.r_min <= 1))
        return refusal("r_min", params.r_min, "not in 0 … 1");
    if (params.update_interval == 0)
        return refusal("update_interval", params.update_interval, "not at least 1");
    if (params.sinks > params.base())
        return refusal("sinks", params.sinks,
                       "above capacity - window, which is " + text(params.base()));
    if (!std::isfinite(params.beta) || params.beta < 1)
        return refusal("beta", params.beta, "not a number of at least 1");
    return {};
}

}  // namespace

Result<PolicyParams> resolve(PolicyRequest const& request) {
    DKV_TRY(check_name(request.name));

    PolicyParams params;
    params.name = request.name;
    params.capacity = request.capacity.value_or(params.capacity);
    params.window = request.window.value_or(params.window);
    params.kernel = request.kernel.value_or(params.kernel);
    params.pool = request.pool.value_or(params.pool);
    params.reduce = request.reduce.value_or(params.reduce);
    params.r_max = request.r_max.value_or(params.r_max);
    params.r_min = request.r_min.value_or(params.r_min);
    params.update_interval = request.update_interval.value_or(params.update_interval);
    params.beta = request.beta.value_or(params.beta);
    // Nobody who asks for a small cache should have to know of sinks.
    std::uint32_t const room = params.capacity - std::min(params.capacity, params.window);
    params.sinks = request.sinks.value_or(std::min(params.sinks, room));

    DKV_TRY(check(params));
    return params;
}

}  // namespace dkv
