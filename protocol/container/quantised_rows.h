// How dkv's own format has rows of fewer bits: each row of K and V by itself, turned by a Hadamard
// matrix, which spreads a few large dims over all, then in ggml's blocks.
#pragma once

#include <vector>

#include "protocol/base/result.h"
#include "protocol/container/ggml_types.h"

namespace dkv {

struct QuantisedRows {
    GgmlType const* type = nullptr;  ///< q8_0 or q4_0.
    std::uint32_t rotation = 0;      ///< Elements of each run that is turned; divides head_dim.
    std::uint32_t head_dim = 0;

    std::uint64_t row_bytes() const noexcept { return type->bytes(head_dim); }

    /// Rows of `dtype` one after another, to the end of `out`.
    ///
    /// Errors: Unsupported for an element that is not finite, or that no scale can hold.
    Result<void> pack(std::span<std::byte const> rows,
                      Dtype dtype,
                      std::vector<std::byte>& out) const;
    /// `out`: as many rows as `packed` has. False: a number is not finite.
    bool unpack(std::span<std::byte const> packed, Dtype dtype, std::span<std::byte> out) const;
};

/// Of `bits` 8 or 4 an element, and their scales.
///
/// Errors: InvalidArgument for other bits; Unsupported for heads that are not whole blocks.
Result<QuantisedRows> quantised_rows(unsigned bits, std::uint32_t head_dim);

/// Of the words that a file's metadata have: "q8_0", 64. The last extent of its rows, `row_bytes`,
/// says how many dims a head has.
///
/// Errors: Unsupported for another type; CorruptData for rows that are not whole blocks, and for a
/// rotation that does not divide them.
Result<QuantisedRows> quantised_rows(std::string_view type,
                                     std::uint32_t rotation,
                                     std::uint64_t row_bytes);

}  // namespace dkv
