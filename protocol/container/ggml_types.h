// The types of ggml's rows: how large their blocks are, and what numbers the blocks hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "protocol/base/dtype.h"

namespace dkv {

struct GgmlType {
    std::int32_t number;
    std::string_view name;
    std::uint32_t block_elements;  ///< Elements that share a block's scale; 0: not known here.
    std::uint32_t block_bytes;
    std::optional<Dtype> dtype;  ///< Nothing: quantised.

    /// Bytes of `elements`, which are whole blocks.
    std::uint64_t bytes(std::uint64_t elements) const noexcept {
        return elements / block_elements * block_bytes;
    }
    bool is_readable() const noexcept { return block_elements > 0; }
};

/// nullptr: no type has this number.
GgmlType const* ggml_type(std::int32_t number) noexcept;
GgmlType const& ggml_type(Dtype dtype) noexcept;

/// `rows` [elements] as f32. `blocks` are type.bytes(rows.size()) bytes and need not be aligned;
/// the type is readable.
void dequantise(GgmlType const& type, std::byte const* blocks, std::span<float> rows) noexcept;

/// The reverse, as ggml rounds, of q8_0 and q4_0. False: an element is not finite, or too large for
/// a block's scale in f16.
[[nodiscard]] bool quantise(GgmlType const& type,
                            std::span<float const> rows,
                            std::byte* blocks) noexcept;

/// Turns each run of `order` elements by the orthonormal Walsh-Hadamard matrix of that order, a
/// power of two that divides the row. The matrix is its own inverse.
void turn_by_hadamard(std::span<float> row, std::uint32_t order) noexcept;

}  // namespace dkv
