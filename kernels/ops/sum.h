#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Adds up a layer's scores: what tally divides by to compare layers of unlike scale.
///
///   scores  [heads, tokens]   f32, read
///   sums    [heads]           f64, the host's, written
///
/// Token t < skip and NaN count as 0. Accumulated in f64; a CPU adds in the order of the tokens, a
/// device in parts that the shape alone determines, so that each one's bits depend on nothing else.
/// A device's sums are there after synchronize(); until then `sums` must live.
struct SumArgs {
    std::span<float const> scores;
    std::span<double> sums;
    std::uint32_t heads = 0;
    std::uint32_t tokens = 0;
    std::uint32_t skip = 0;
};

/// Errors: InvalidArgument when a span disagrees with the table above.
Result<void> check(SumArgs const& args);

}  // namespace dkv
