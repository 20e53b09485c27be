#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Counts how many of the `total` largest scores of all layers fall in each layer and head: the
/// progressive update of DynamicKV (§3.2, algorithm 1) needs these counts and nothing else.
///
///   layers  [layers] of [heads, tokens]   f32, read; NaN counts as the smallest
///   counts  [layers, heads]               written; Σ counts == min(total, layers * heads * tokens)
///   scales  [layers], or empty            f32, the host's, read; empty: 1 for every layer
///
/// What is compared is score * scale of its layer, rounded to f32; of token t < skip it is 0. The
/// layers themselves stay as they are. A device's counts are there after synchronize(); until then
/// `counts` must live. Exact. Equal values at the threshold: the lower layer first,
/// then the lower head, then the lower token. Never a sort: one histogram pass per digit, then one
/// for the ties.
struct TallyArgs {
    std::span<std::span<float const> const> layers;
    std::span<std::uint64_t> counts;
    std::uint32_t heads = 0;
    std::uint32_t tokens = 0;
    std::uint64_t total = 0;
    std::span<float const> scales = {};
    std::uint32_t skip = 0;
};

/// Errors: InvalidArgument when a span disagrees with the table above.
Result<void> check(TallyArgs const& args);

}  // namespace dkv
