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

/// Lists of values for each parameter; one that is empty says nothing: the policy's own value
/// counts.
struct Grid {
    std::vector<std::string> policies;
#define DKV_SIZE(name, type, ...) std::vector<type> name = {};
#define DKV_NUMBER(name, type, ...) std::vector<type> name = {};
#define DKV_OF_PROFILE(name, type, ...) std::vector<type> name = {};
#define DKV_NAMED(name, type, ...) Named<type> name = {};  // Of every point.
#include "protocol/policy/parameters.inc"
};

/// One request, and as JSON what was asked for: policy, size and what else was given.
struct GridPoint {
    PolicyRequest request;
    Json asked;
};

/// The product of the lists, policy by policy; sizes in the order of the table. A policy that does
/// not look at a parameter has no points for its values, and fullkv, which has no size, has one
/// point.
///
/// Errors: InvalidArgument without a policy, or without a size where a policy needs one.
Result<std::vector<GridPoint>> grid_points(Grid const& grid);

}  // namespace dkv::cli
