// The numbers that ggml's blocks hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "protocol/container/ggml_types.h"

namespace dkv {

/// `rows` [elements] as f32. `blocks` are type.bytes(rows.size()) bytes and need not be aligned;
/// the type is readable.
void dequantise(GgmlType const& type, std::byte const* blocks, std::span<float> rows) noexcept;

/// Turns each run of `order` elements by the orthonormal Walsh-Hadamard matrix of that order, a
/// power of two that divides the row. The matrix is its own inverse.
void turn_by_hadamard(std::span<float> row, std::uint32_t order) noexcept;

}  // namespace dkv
