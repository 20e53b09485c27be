#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dkv {

/// zlib's CRC-32 of the bytes that `crc` is of, followed by `bytes`. Of no bytes it is 0.
std::uint32_t crc32(std::uint32_t crc, std::span<std::byte const> bytes) noexcept;

}  // namespace dkv
