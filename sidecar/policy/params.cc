#include "sidecar/policy/params.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "sidecar/policy/policy.h"
#include "sidecar/policy/presets.h"
#include "sidecar/policy/rounding.h"
#include "sidecar/policy/text.h"

namespace dkv {
namespace {

constexpr std::uint32_t kKernelOfAuto = 15;  // docs/eval/README.md, "What does what".
// Rows that are always kept leave less to what later text will want: half as many as elsewhere.
constexpr std::uint32_t kWindowOfForeseen = 16;

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
    if (std::ranges::find(reference_forms(), name) != reference_forms().end())
        return Error{ErrorCode::Unsupported,
                     name +
                         " is a published code's form, for comparison only: it runs in `dkv diff "
                         "FILE --against " +
                         name + "`, not in a sidecar"};
    return Error{ErrorCode::NotFound, "no policy is called \"" + name + "\"; there are " + known};
}

/// Only what ranks by the window's attention can be told to keep a share of it.
Result<void> check_ranks_by_attention(PolicyParams const& params) {
    Traits const can = entry_of(params.name).traits;
    if (!params.keep_mass || can.has(Trait::Attention) || !can.has(Trait::Sized)) return {};
    return Error{ErrorCode::InvalidArgument,
                 "keep_mass is " + text(*params.keep_mass) + ", and " + params.name +
                     " does not rank by attention: h2o, snapkv, pyramidkv and dynamickv do"};
}

Result<void> check_one_size(PolicyRequest const& request) {
    std::string given;
    each_size(
        [&given](char const* name, auto const& size) {
            if (size) given += (given.empty() ? "" : " and ") + std::string(name);
        },
        request);
    if (given.find(' ') == std::string::npos) return {};
    return Error{ErrorCode::InvalidArgument, given + " are given: one size is enough"};
}

Result<void> check_has_profile(PolicyRequest const& request) {
    if (request.profile) return {};
    Result<void> result;
    each_of_profile(
        [&result](char const* name, auto const& value) {
            if (result && value) result = refusal(name, *value, "but no profile is given");
        },
        request);
    return result;
}

/// Every value by itself.
Result<void> check_ranges(PolicyParams const& params) {
    Result<void> result;
    auto const look = [&result]<class T>(char const* name, T const& value) {
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            Parameter const& row = parameter(name);
            if (result && !row.range.holds(static_cast<double>(value)))
                result = refusal(name, value, "not " + row.expected());
        }
    };
    auto const look_if_given = [&look]<class T>(char const* name, T const& value) {
        if constexpr (requires { *value; }) {
            if (value) look(name, *value);
        } else {
            look(name, value);
        }
    };
    each_size(look_if_given, params);
    each_number(look, params);
    return result;
}

Result<void> check(PolicyParams const& params) {
    DKV_TRY(check_ranges(params));
    if (params.capacity < params.window)
        return refusal(
            "capacity", params.capacity,
            "below the window of " + text(params.window) + " tokens that are always kept");
    if (params.reduce == GroupReduce::None)
        return Error{ErrorCode::InvalidArgument, "reduce is none, not mean, max or sum"};
    if (params.sinks > params.base())
        return refusal("sinks", params.sinks,
                       "above capacity - window, which is " + text(params.base()));
    DKV_TRY(check_ranks_by_attention(params));
    return {};
}

/// One that ranks must be there, and any must be the model's.
Result<void> check_surrogate(PolicyParams const& params, Geometry const& geometry) {
    Surrogate const* const surrogate = params.profile ? params.profile->surrogate.get() : nullptr;
    if (surrogate == nullptr && params.name == "reuse")
        return Error{ErrorCode::InvalidArgument,
                     "reuse ranks tokens by a profile's surrogate, and " +
                         (params.profile ? "profile \"" + params.profile->name + "\" has none"
                                         : std::string("there is no profile")) +
                         ": `dkv calibrate MODEL --surrogate` makes one"};
    if (surrogate == nullptr ||
        (surrogate->kv_heads == geometry.kv_heads && surrogate->head_dim == geometry.head_dim))
        return {};
    return Error{ErrorCode::InvalidArgument,
                 "profile \"" + params.profile->name + "\" has a surrogate for " +
                     text(surrogate->kv_heads) + " KV heads of " + text(surrogate->head_dim) +
                     " dimensions, not for " + text(geometry.kv_heads) + " of " +
                     text(geometry.head_dim) + ": calibrate this model"};
}

}  // namespace

Result<std::shared_ptr<Profile const>> resolve_profile(PolicyRequest const& request) {
    if (!request.profile) return request.profile;
    auto profile = std::make_shared<Profile>(*request.profile);
    profile->alpha = request.profile_alpha.value_or(profile->alpha);
    profile->floor = request.profile_floor.value_or(profile->floor);
    DKV_TRY(check(*profile));
    return std::shared_ptr<Profile const>(std::move(profile));
}

std::string in_words(PolicyParams const& params) {
    std::string words = params.name;
    if (params.ratio)
        words += ", ratio " + text(*params.ratio);
    else if (params.bytes)
        words += ", at most " + std::to_string(*params.bytes) + " bytes";
    else if (params.keep_mass)
        words += ", mass " + text(*params.keep_mass);
    else
        words += ", capacity " + text(params.capacity);
    words += ", window " + text(params.window);
    if (params.profile) words += ", profile " + params.profile->name;
    return words;
}

Result<PolicyParams> resolve(PolicyRequest const& wish, std::string_view model) {
    DKV_TRY(check_name(wish.name));
    DKV_TRY(check_one_size(wish));
    DKV_TRY(check_has_profile(wish));
    PolicyRequest const request = DKV_TRY(with_preset(wish, model));

    PolicyParams params;
    params.name = request.name;
    params.profile = DKV_TRY(resolve_profile(request));
    // Published policies keep their published kernel; what is best has the one that was best.
    if (params.name == "auto") params.kernel = kKernelOfAuto;
    // KVzip's: one threshold for all heads of all layers.
    if (params.name == "scores") params.granularity = Granularity::LayerHead;
    // A profile was measured with a kernel: other tokens would be the best ones with another.
    if (params.profile && params.profile->kernel != 0) params.kernel = params.profile->kernel;
    auto const take = [](char const*, auto& value, auto const& asked) {
        if (asked) value = *asked;
    };
    each_size(take, params, request);
    each_number(take, params, request);
    if (!request.window && foresees(params)) params.window = kWindowOfForeseen;
    // Another size says nothing of the capacity, which must not be refused for it.
    if (params.ratio || params.bytes || params.keep_mass)
        params.capacity = std::max(params.capacity, params.window);
    // A user who asks for a small cache should not have to know of sinks.
    std::uint32_t const room = params.capacity - std::min(params.capacity, params.window);
    if (!request.sinks) params.sinks = std::min(params.sinks, room);

    DKV_TRY(check(params));
    return params;
}

Result<PolicyParams> sized(PolicyParams const& params,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens) {
    if (params.profile &&
        (params.profile->layers != geometry.layers ||
         (params.profile->heads != geometry.kv_heads && params.profile->heads != 1)))
        return Error{ErrorCode::InvalidArgument, "profile \"" + params.profile->name +
                                                     "\" is for " + text(params.profile->layers) +
                                                     " layers of " + text(params.profile->heads) +
                                                     " KV heads, not for " + text(geometry.layers) +
                                                     " of " + text(geometry.kv_heads) +
                                                     ": calibrate this model"};

    DKV_TRY(check_surrogate(params, geometry));

    PolicyParams result = params;
    if (params.ratio) {
        auto const tokens =
            static_cast<std::uint32_t>(*params.ratio * prompt_tokens + kRoundingSlack);
        result.capacity = std::max(params.window, tokens);
    }
    if (params.bytes) {
        std::uint64_t const tokens = *params.bytes / geometry.cache_bytes(1);
        if (tokens < params.window)
            return Error{ErrorCode::InvalidArgument,
                         "bytes is " + std::to_string(*params.bytes) + ", and the window of " +
                             text(params.window) + " tokens alone takes " +
                             std::to_string(geometry.cache_bytes(params.window))};
        result.capacity =
            static_cast<std::uint32_t>(std::min<std::uint64_t>(tokens, prompt_tokens));
        result.capacity = std::max(result.capacity, params.window);
    }
    result.sinks = std::min(params.sinks, result.base());
    result.ratio.reset();
    result.bytes.reset();
    return result;
}

}  // namespace dkv
