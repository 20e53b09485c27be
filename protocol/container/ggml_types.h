// The types of ggml's rows, and how large their blocks are.
#pragma once

#include <cstdint>
#include <optional>
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

}  // namespace dkv
