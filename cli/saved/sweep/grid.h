// The grid of a sweep: what is asked for, and the points that come of it. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/render/json.h"
#include "sidecar/policy/params.h"

namespace dkv::cli {

/// A saved cache of a sweep, and the task that its prompt belongs to; empty: none.
struct SweepFile {
    std::string path;
    std::string task;
};

/// Lists that are empty say nothing: the policy's own value counts.
struct Grid {
    std::vector<std::string> policies;
    std::vector<std::uint32_t> capacities;
    std::vector<double> ratios;
    std::vector<std::uint64_t> bytes;
    std::vector<double> masses;
    std::vector<std::uint32_t> windows;
    std::vector<std::uint32_t> kernels;
    std::vector<std::string> pools;
    PolicyRequest fixed;  ///< What every point has.
};

/// One request, and as JSON what was asked for: policy, size and what else was given.
struct GridPoint {
    PolicyRequest request;
    Json asked;
};

/// The product of the lists, policy by policy; sizes in the order capacities, ratios, bytes,
/// masses. A policy that does not look at a parameter has no points for its values, and fullkv,
/// which has no size, has one point.
///
/// Errors: InvalidArgument when there is no policy, or no size where a policy needs one.
Result<std::vector<GridPoint>> grid_points(Grid const& grid);

/// "512MiB", "32k", "4096": K, M, G are 1024, 1024² …, as --bytes has them.
/// Errors: InvalidArgument.
Result<std::uint64_t> parse_size(std::string const& text);

}  // namespace dkv::cli
