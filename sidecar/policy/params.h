// A policy's name and numbers: what a request asks for, and what will be used.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "protocol/policy/parameters.h"
#include "sidecar/policy/profile.h"

namespace dkv {

template <class T>
using Named = std::conditional_t<std::is_same_v<T, Profile>, std::shared_ptr<Profile const>, T>;

/// A wish: what protocol/policy/parameters.inc lists. What is left out is the preset's, or else the
/// profile's (its kernel), or else the policy's own default. One size is given at most.
struct PolicyRequest {
    std::string name;
#define DKV_SIZE(name, type, ...) std::optional<type> name = {};
#define DKV_NUMBER(name, type, ...) std::optional<type> name = {};
#define DKV_OF_PROFILE(name, type, ...) std::optional<type> name = {};
#define DKV_NAMED(name, type, ...) Named<type> name = {};
#include "protocol/policy/parameters.inc"
};

/// Every value, checked. A policy ignores those it has no use for.
struct PolicyParams {
    std::string name = "dynamickv";
#define DKV_CAPACITY(name, type, initial, ...) type name = initial;
#define DKV_SIZE(name, type, ...) std::optional<type> name = {};
#define DKV_NUMBER(name, type, initial, ...) type name = initial;
#include "protocol/policy/parameters.inc"
    std::shared_ptr<Profile const> profile = {};  ///< With the alpha and floor to use.

    std::uint32_t base() const noexcept {
        return capacity - window;
    }
    /// First tokens that do not count when layers are compared: sinks, and what pooling spreads
    /// them to.
    std::uint32_t tally_skip() const noexcept {
        return score_norm == ScoreNorm::LayerNoSink ? sinks + kernel / 2 : 0;
    }
    bool operator==(PolicyParams const&) const = default;  ///< Profiles: the same object.
};

/// The wish with defaults filled in. `model` is the engine's name of its model: a preset may
/// differ between families; empty: unknown.
///
/// Errors: NotFound for an unknown name or preset (the message lists the known ones). Unsupported
/// for a reference form (the message says where it runs).
/// InvalidArgument, naming the value: one outside its range, capacity below window, sinks above
/// capacity - window, two sizes at once, keep_mass of a policy that does not rank by attention,
/// profile_alpha or profile_floor without a profile; and those of check(Profile).
Result<PolicyParams> resolve(PolicyRequest const& wish, std::string_view model = {});

/// The request's profile, checked, with the request's own alpha and floor; nullptr: none.
Result<std::shared_ptr<Profile const>> resolve_profile(PolicyRequest const& request);

/// "dynamickv, capacity 512, window 32, profile smollm2": for logs.
std::string in_words(PolicyParams const& params);

/// The size in tokens: `params` with a capacity in place of ratio or bytes, for a prompt of this
/// many tokens. A ratio never goes below the window; keep_mass stays, since it needs scores.
///
/// Errors: InvalidArgument when `bytes` cannot hold the window, or when the profile is for other
/// layers or heads than `geometry` has, or reuse has no profile with a surrogate.
Result<PolicyParams> sized(PolicyParams const& params,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens);

}  // namespace dkv
