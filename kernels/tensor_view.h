// Rows of a cache: a pointer that knows shape, dtype, strides and place. Owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv {

enum class Place : std::uint8_t { Host, Device };

/// [heads, tokens, head_dim] with named strides, so that HF, vLLM NHD/HND and llama.cpp rows are
/// all described, not converted. Strides count elements; a dim_stride of 1 is the fast path.
///
/// Paged rows (vLLM's) have `blocks`: token t of any head is row t % block_tokens of block
/// blocks[t / block_tokens], and `data` is that of block 0. The table is the backend's memory; its
/// ids are looked at by each op that is given one, before it reads a row: check_blocks() on a CPU,
/// kernels/cuda/gather_rows.h on a device.
struct RowsView {
    std::byte* data = nullptr;  ///< Of head 0, token 0, dim 0.
    Dtype dtype = Dtype::F32;
    Place place = Place::Host;
    std::uint32_t heads = 0;
    std::uint32_t tokens = 0;
    std::uint32_t head_dim = 0;
    std::uint64_t head_stride = 0;
    std::uint64_t token_stride = 0;
    std::uint64_t dim_stride = 1;
    std::int32_t const* blocks = nullptr;  ///< [ceil(tokens / block_tokens)], or null: not paged.
    std::uint32_t block_tokens = 0;
    std::uint32_t block_count = 0;   ///< Blocks that there are: ids are in [0, block_count).
    std::uint64_t block_stride = 0;  ///< From a block to the next one in memory.

    bool paged() const noexcept { return blocks != nullptr; }
    /// Entries of `blocks`; only when paged.
    std::uint32_t table_size() const noexcept {
        return tokens == 0 ? 0 : (tokens - 1) / block_tokens + 1;
    }
    std::uint64_t row_bytes() const noexcept { return std::uint64_t{head_dim} * bytes_of(dtype); }
    /// Of paged rows only where the table is in the host's memory.
    std::byte* row(std::uint32_t head, std::uint32_t token) const noexcept {
        std::uint64_t at = head * head_stride;
        if (blocks != nullptr) {
            at += static_cast<std::uint32_t>(blocks[token / block_tokens]) * block_stride;
            token %= block_tokens;
        }
        return data + (at + token * token_stride) * bytes_of(dtype);
    }
};

/// Rows that lie one after another: [heads][tokens][head_dim].
RowsView dense_rows(std::byte* data,
                    Dtype dtype,
                    std::uint32_t heads,
                    std::uint32_t tokens,
                    std::uint32_t head_dim);

/// The bytes from `data` to the end of the last element; of paged rows, of the last block's.
/// Errors: InvalidArgument when they do not fit in 64 bits.
Result<std::uint64_t> extent_bytes(RowsView const& view);

/// Whether two elements of rows that are not paged may have the same place, or lie between each
/// other's strides: [heads, tokens] may come in any order, but each lies outside the other.
bool may_overlap(RowsView const& view) noexcept;

/// Errors: InvalidArgument, naming the tensor and both shapes, unless `view` has this shape:
/// "keys is [3, 100, 64], not [3, 101, 64]".
Result<void> check_shape(char const* name,
                         RowsView const& view,
                         std::uint32_t heads,
                         std::uint32_t tokens,
                         std::uint32_t head_dim);

/// Errors: InvalidArgument unless `elements` is the product of `extents`:
/// "scores has 10 elements, not [3, 4]".
Result<void> check_elements(char const* name,
                            std::size_t elements,
                            std::initializer_list<std::uint64_t> extents);

/// Errors: InvalidArgument when `view` has elements but no data, an unknown dtype, an extent
/// beyond 64 bits, or a table of blocks that have no tokens.
Result<void> check_memory(char const* name, RowsView const& view);

/// For a table in the host's memory. Errors: InvalidArgument unless every block exists:
/// "block 3 of the table is 77, not in [0, 12)".
Result<void> check_blocks(RowsView const& view);

/// Queries and keys of one layer: q_heads a multiple of kv_heads, a head_dim, one dtype, queries
/// that are not paged, and fewer of their elements than what backends could allocate for them would
/// overflow at.
///
/// Errors: InvalidArgument, naming the value.
Result<void> check_heads(RowsView const& queries, RowsView const& keys);

}  // namespace dkv
