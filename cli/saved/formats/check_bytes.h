// Every byte of a tensor, read once: its CRC-32, and whether its numbers are finite.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "protocol/base/dtype.h"

namespace dkv {

struct BytesReport {
    std::uint32_t crc = 0;  ///< 0 when it was not asked for.
    /// The first element that is a NaN or an infinity.
    std::optional<std::uint64_t> not_finite;
};

/// `floats`: what the bytes are; nothing: no numbers to look at. They need not be aligned.
BytesReport check_bytes(std::span<std::byte const> bytes,
                        std::optional<Dtype> floats,
                        bool with_crc) noexcept;

}  // namespace dkv
