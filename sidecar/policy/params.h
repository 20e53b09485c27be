// A policy's name and numbers: what somebody asked for, and what will be used.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "protocol/base/score_options.h"
#include "sidecar/policy/profile.h"

namespace dkv {

/// A wish. What is left out is the preset's, or else the profile's (its kernel), or else the
/// policy's own default. Of capacity, ratio, bytes and keep_mass there is one at most.
struct PolicyRequest {
    std::string name;
    std::optional<std::uint32_t> capacity = {};
    std::optional<std::uint32_t> window = {};
    std::optional<std::uint32_t> kernel = {};
    std::optional<Pool> pool = {};
    std::optional<GroupReduce> reduce = {};
    std::optional<double> r_max = {};
    std::optional<double> r_min = {};
    std::optional<std::uint32_t> update_interval = {};
    std::optional<std::uint32_t> sinks = {};
    std::optional<double> beta = {};
    std::optional<Granularity> granularity = {};
    std::optional<ScoreNorm> score_norm = {};
    std::optional<bool> query_norm = {};
    std::optional<double> ratio = {};
    std::optional<std::uint64_t> bytes = {};
    std::optional<double> keep_mass = {};
    std::string preset = {};
    std::shared_ptr<Profile const> profile = {};
    std::optional<double> profile_alpha = {};
    std::optional<double> profile_floor = {};
};

/// Every number, checked. A policy ignores those it has no use for.
struct PolicyParams {
    std::string name = "dynamickv";
    std::uint32_t capacity = 512;  ///< Mean tokens per layer and KV head, window included.
    std::uint32_t window = 32;     ///< Last prompt tokens: kept, and their queries score.
    std::uint32_t kernel = 7;      ///< Of the pooling; odd. 15 with "auto".
    Pool pool = Pool::Max;
    GroupReduce reduce = GroupReduce::Mean;
    double r_max = 10.0;                ///< A layer stages at most r_max * base prefix tokens.
    double r_min = 0.1;                 ///< A layer keeps at least ceil(r_min * base) of them.
    std::uint32_t update_interval = 4;  ///< m: layers between two re-cuts.
    std::uint32_t sinks = 4;            ///< streamingllm: first tokens kept.
    double beta = 20.0;                 ///< pyramidkv: mean budget over the last layer's.
    Granularity granularity = Granularity::Layer;  ///< dynamickv: what shares the budget.
    ScoreNorm score_norm = ScoreNorm::None;        ///< dynamickv: of layers, before counting.
    bool query_norm = false;                  ///< h2o: per token, by the queries that can see it.
    std::optional<double> ratio = {};         ///< Share of the tokens; sized() makes it a capacity.
    std::optional<std::uint64_t> bytes = {};  ///< Of K and V together; likewise.
    std::optional<double> keep_mass = {};     ///< Share of the window's attention, in every layer.
    std::shared_ptr<Profile const> profile = {};  ///< dynamickv: with the alpha and floor to use.

    std::uint32_t base() const noexcept { return capacity - window; }
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
/// InvalidArgument, naming the value: capacity below window, window 0 or above 1024, kernel even or
/// above 63, r_max below 1, r_min outside 0 … 1, update_interval 0, sinks above capacity - window,
/// beta below 1, ratio or keep_mass outside 0 … 1, bytes 0, two sizes at once, keep_mass of a
/// policy that does not rank by attention, profile_alpha or profile_floor without a profile; and
/// those of check(Profile).
Result<PolicyParams> resolve(PolicyRequest const& wish, std::string_view model = {});

/// The request's profile, checked, with the request's own alpha and floor; nullptr: none.
Result<std::shared_ptr<Profile const>> resolve_profile(PolicyRequest const& request);

/// "dynamickv, capacity 512, window 32, profile smollm2": for logs.
std::string in_words(PolicyParams const& params);

/// The size in tokens: `params` with a capacity in place of ratio or bytes, for a prompt of this
/// many tokens. A ratio never goes below the window; keep_mass stays, since it needs scores.
///
/// Errors: InvalidArgument when `bytes` cannot hold the window, or when the profile is for other
/// layers or heads than `geometry` has.
Result<PolicyParams> sized(PolicyParams const& params,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens);

}  // namespace dkv
