// What code outside kernels/ may use of the CPU backend: elements and rows of a cache as f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor_view.h"
#include "protocol/base/elements.h"

namespace dkv {

/// A head's row as f32 in `out` [columns], aligned to 64 bytes; zeros follow its head_dim elements.
void widen(
    RowsView const& view, std::uint32_t head, std::uint32_t row, float* out, std::size_t columns);

}  // namespace dkv
