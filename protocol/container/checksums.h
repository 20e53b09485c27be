// Where CRC-32s stand in a container's metadata: "crc32.NAME" of each tensor's bytes, and "crc32"
// of the header itself. Each is eight hexadecimal digits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/container/safetensors.h"

namespace dkv {

inline constexpr char const* kHeaderCrcKey = "crc32";
std::string crc_key(std::string_view tensor);

std::string crc_text(std::uint32_t crc);
/// Nothing for any other text than crc_text() makes.
std::optional<std::uint32_t> parse_crc(std::string_view text);

/// Of a header with its blanks, its own eight digits taken as zeros.
std::uint32_t header_crc(std::string_view header) noexcept;

/// Errors: CorruptData unless the header's checksum is its own.
Result<void> check_header_crc(TensorTable const& table);

}  // namespace dkv
