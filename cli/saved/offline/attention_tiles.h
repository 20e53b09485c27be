// The inner loops of attention_error, for whatever vectors the machine has.
#pragma once

#include <cstddef>
#include <span>

namespace dkv::offline {

/// Columns of a tile are a multiple of this many, whatever the machine's vectors.
inline constexpr std::size_t kTileColumns = 16;

/// c [rows, columns] += a [rows, inner] · b [inner, columns]. b and c are dense and aligned to 64
/// bytes; rows of a begin `a_stride` apart.
void multiply_add(float const* a,
                  std::size_t a_stride,
                  float const* b,
                  float* c,
                  std::size_t rows,
                  std::size_t inner,
                  std::size_t columns);

/// weights = e^(weights - largest); their sum is returned. Not more than `largest` each.
float exponentials(std::span<float> weights, float largest);

}  // namespace dkv::offline
