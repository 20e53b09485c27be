#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"

namespace dkv {

/// What of a key counts when there are no queries.
enum class KeyMeasure : std::uint8_t {
    Norm,       ///< -‖k‖₂: small keys are attended to most (Devoto et al. 2024).
    Difference  ///< -cos(k, mean of k / ‖k‖ over the head's tokens) (KeyDiff, Park et al. 2025).
};

/// Scores tokens by their keys alone; the largest are to be kept.
///
///   keys    [kv_heads, tokens, head_dim]   any dtype, strides and blocks; read: once for
///                                           Norm, twice else
///   scores  [kv_heads, tokens - window]    f32, written
///
/// The mean of Difference is over all tokens of the head, the last `window` included, which have no
/// column. A key of zeros is a direction of zeros, and its cosine 0. A token whose key has a norm
/// that is not an f32 number scores the lowest number there is and takes no part in the mean, so
/// scores are always finite. Accumulators are f32 or wider. A device reads rows that are not whole
/// 16-byte words three times for Difference, and adds up the mean in another order than a CPU.
struct KeyScoreArgs {
    RowsView keys;
    std::span<float> scores;
    std::uint32_t window = 0;
    KeyMeasure measure = KeyMeasure::Norm;
};

/// Errors: InvalidArgument when shapes or sizes disagree with the table above, when there are no
/// heads or dimensions, or window exceeds tokens.
Result<void> check(KeyScoreArgs const& args);

}  // namespace dkv
