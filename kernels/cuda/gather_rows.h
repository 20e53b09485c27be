// Rows of a cache as kernels meet them: strides in bytes, blocks followed. A kernel that is given
// paged rows is launched behind check_blocks_later() and returns at once where `fault->kind` is not
// 0: a block that does not exist is never read.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"
#include "kernels/tensor_view.h"

namespace dkv::cuda {

/// Host side: the strides of this view that are ever taken, in bytes.
struct RowsOnDevice {
    unsigned char const* data;
    std::uint64_t head_bytes;
    std::uint64_t token_bytes;
    std::uint64_t dim_bytes;
    std::int32_t const* blocks;  // Null: not paged.
    std::uint32_t block_tokens;
    std::uint64_t block_bytes;

    __device__ __forceinline__ unsigned char const* row(std::uint32_t head,
                                                        std::uint32_t token) const {
        unsigned char const* base = data + head * head_bytes;
        if (blocks != nullptr) {
            base += static_cast<std::uint32_t>(blocks[token / block_tokens]) * block_bytes;
            token %= block_tokens;
        }
        return base + token * token_bytes;
    }
};

inline RowsOnDevice rows_on_device(RowsView const& view) {
    std::uint64_t const element = bytes_of(view.dtype);
    RowsOnDevice rows{};
    rows.data = reinterpret_cast<unsigned char const*>(view.data);
    // A stride that is never taken may be anything, and counts for no alignment.
    rows.head_bytes = view.heads > 1 ? view.head_stride * element : 0;
    rows.token_bytes = view.tokens > 1 ? view.token_stride * element : 0;
    rows.dim_bytes = view.head_dim > 1 ? view.dim_stride * element : element;
    rows.blocks = view.blocks;
    rows.block_tokens = view.block_tokens;
    rows.block_bytes = view.paged() ? view.block_stride * element : 0;
    return rows;
}

/// The widest word, 16 bytes to 1, at whose multiples every row begins, and every element where
/// elements do not lie side by side; of rows that do, also the row is a whole number of them.
inline std::uint64_t word_bytes(RowsView const& view) {
    RowsOnDevice const rows = rows_on_device(view);
    std::uint64_t const element = bytes_of(view.dtype);
    bool const whole = rows.dim_bytes == element;
    std::uint64_t const bits = 16 | reinterpret_cast<std::uintptr_t>(rows.data) | rows.head_bytes |
                               rows.token_bytes | rows.block_bytes |
                               (whole ? view.row_bytes() : element);
    return bits & (~bits + 1);
}

/// Enqueues a look at every id of the view's block table; nothing when it is not paged.
Result<void> check_blocks_later(RowsView const& view, Queue& queue);

}  // namespace dkv::cuda
