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

    std::uint64_t row_bytes() const noexcept { return std::uint64_t{head_dim} * bytes_of(dtype); }
    std::byte* row(std::uint32_t head, std::uint32_t token) const noexcept {
        return data + (head * head_stride + token * token_stride) * bytes_of(dtype);
    }
};

/// Rows that lie one after another: [heads][tokens][head_dim].
RowsView dense_rows(std::byte* data,
                    Dtype dtype,
                    std::uint32_t heads,
                    std::uint32_t tokens,
                    std::uint32_t head_dim);

/// The bytes from `data` to the end of the last element.
/// Errors: InvalidArgument when they do not fit in 64 bits.
Result<std::uint64_t> extent_bytes(RowsView const& view);

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

/// Errors: InvalidArgument when `view` has elements but no data, an unknown dtype, or an extent
/// beyond 64 bits.
Result<void> check_memory(char const* name, RowsView const& view);

/// Queries and keys of one layer: q_heads a multiple of kv_heads, a head_dim, one dtype, and fewer
/// query elements than what backends could allocate for them would overflow at.
///
/// Errors: InvalidArgument, naming the value.
Result<void> check_heads(RowsView const& queries, RowsView const& keys);

}  // namespace dkv
