#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/result.h"
#include "protocol/base/score_options.h"

namespace dkv {

/// Smooths scores along tokens, stride 1 (DynamicKV §3.2, SnapKV's clustering).
///
///   scores  [heads, tokens]   f32, read
///   out     [heads, tokens]   f32, written; must not overlap scores
///
/// The kernel is centred. Outside the row: nothing for Max, zeros for Avg, which always divides by
/// `kernel`, as torch's pool1d with padding kernel/2 does. NaN spreads to every output that sees
/// it. Of equal values Max takes the first: -0 and 0. Kernels to 31 give the same bits everywhere,
/// longer averages to an ulp.
struct PoolArgs {
    std::span<float const> scores;
    std::span<float> out;
    std::uint32_t heads = 0;
    std::uint32_t tokens = 0;
    std::uint32_t kernel = 1;
    Pool pool = Pool::Max;
};

/// Errors: InvalidArgument when a span disagrees with heads and tokens, kernel is even or
/// 0, or out overlaps scores.
Result<void> check(PoolArgs const& args);

}  // namespace dkv
