// The vector arithmetic of `key_score`, compiled for several instruction sets and chosen at run
// time.
#pragma once

#include "kernels/cpu/score_tiles.h"

namespace dkv::cpu {

/// `memory` below is a row's, [padded_dim(head_dim)], aligned to 64 bytes.

/// scores[token - range.begin] = -‖k‖, the lowest number where that is none.
void key_norms(KeyRange const& range, float* memory, float* scores);

/// Adds k / ‖k‖ of each token to sum [head_dim]; keys of zeros and those whose norm is NaN
/// are left out.
void add_directions(KeyRange const& range, float* memory, float* sum);

/// scores[token - range.begin] = -cos(k, mean), the lowest number where ‖k‖ is none. `mean`
/// [head_dim] has norm 1, or is all zeros.
void key_cosines(KeyRange const& range, float const* mean, float* memory, float* scores);

}  // namespace dkv::cpu
