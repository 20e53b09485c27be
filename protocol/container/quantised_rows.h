// How dkv's own format has rows of fewer bits: each row of K and V by itself, turned by a Hadamard
// matrix, which spreads a few large dims over all, then in ggml's blocks. Refined rows have what
// that leaves off in blocks of their own.
#pragma once

#include <string>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/container/ggml_types.h"

namespace dkv {

/// Of an element of K and V in a file.
enum class RowBits : std::uint8_t {
    Own,  ///< As the rows are.
    Eight,
    Four,
    Mixed  ///< Four; the best rows are refined by four more.
};
/// "", "8", "4", "mixed".
std::string_view name_of(RowBits bits) noexcept;

struct QuantisedRows {
    GgmlType const* type = nullptr;  ///< q8_0 or q4_0.
    bool refined = false;            ///< Some rows are.
    std::uint32_t rotation = 0;      ///< Elements of each run that is turned; divides head_dim.
    std::uint32_t head_dim = 0;

    /// "q4_0", or "q4_0+q4_0".
    std::string name() const;
    /// Also of what refines a row.
    std::uint64_t row_bytes() const noexcept { return type->bytes(head_dim); }

    /// Rows of `dtype` one after another, to the end of `out`.
    ///
    /// Errors: Unsupported for an element that is not finite, or that no scale can hold.
    Result<void> pack(std::span<std::byte const> rows,
                      Dtype dtype,
                      std::vector<std::byte>& out) const;
    /// What pack() leaves off of each row.
    Result<void> pack_rest(std::span<std::byte const> rows,
                           Dtype dtype,
                           std::vector<std::byte>& out) const;
    /// `rest`: of every row of `packed`, or empty. `out`: as many rows. False: a number is not
    /// finite.
    bool unpack(std::span<std::byte const> packed,
                std::span<std::byte const> rest,
                Dtype dtype,
                std::span<std::byte> out) const;

private:
    Result<void> append_row(std::span<float const> turned, std::vector<std::byte>& out) const;
    template <class Row>
    Result<void> each_row(std::span<std::byte const> rows, Dtype dtype, Row const& take) const;
};

/// `bits` is not Own.
///
/// Errors: Unsupported for heads that are not whole blocks.
Result<QuantisedRows> quantised_rows(RowBits bits, std::uint32_t head_dim);

/// Of the words that a file's metadata have: "q8_0", 64. The last extent of its rows, `row_bytes`,
/// says how many dims a head has.
///
/// Errors: Unsupported for another type; CorruptData for rows that are not whole blocks, and for a
/// rotation that does not divide them.
Result<QuantisedRows> quantised_rows(std::string_view type,
                                     std::uint32_t rotation,
                                     std::uint64_t row_bytes);

}  // namespace dkv
