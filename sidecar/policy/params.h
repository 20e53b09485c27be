// A policy's name and numbers: what somebody asked for, and what will be used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "protocol/base/result.h"
#include "protocol/base/score_options.h"

namespace dkv {

/// A wish. What is left out is the policy's own default.
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
};

/// Every number, checked. A policy ignores those it has no use for.
struct PolicyParams {
    std::string name = "dynamickv";
    std::uint32_t capacity = 512;  ///< Mean tokens per layer and KV head, window included.
    std::uint32_t window = 32;     ///< Last prompt tokens: kept, and their queries score.
    std::uint32_t kernel = 7;      ///< Of the pooling; odd.
    Pool pool = Pool::Max;
    GroupReduce reduce = GroupReduce::Mean;
    double r_max = 10.0;                ///< A layer stages at most r_max * base prefix tokens.
    double r_min = 0.1;                 ///< A layer keeps at least ceil(r_min * base) of them.
    std::uint32_t update_interval = 4;  ///< m: layers between two re-cuts.
    std::uint32_t sinks = 4;            ///< streamingllm: first tokens kept.
    double beta = 20.0;                 ///< pyramidkv: mean budget over the last layer's.

    std::uint32_t base() const noexcept { return capacity - window; }
    bool operator==(PolicyParams const&) const = default;
};

/// The request with defaults filled in.
///
/// Errors: NotFound for an unknown name (the message lists the known ones). InvalidArgument, naming
/// the value: capacity below window, window 0 or above 1024, kernel even or above 63, r_max below
/// 1, r_min outside 0 … 1, update_interval 0, sinks above capacity - window, beta below 1.
Result<PolicyParams> resolve(PolicyRequest const& request);

}  // namespace dkv
