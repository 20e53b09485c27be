#include "protocol/files/crc32.h"

#include <libdeflate.h>

namespace dkv {

std::uint32_t crc32(std::uint32_t crc, std::span<std::byte const> bytes) noexcept {
    // libdeflate takes NULL as a question for the start value, whatever the length.
    return bytes.empty() ? crc : libdeflate_crc32(crc, bytes.data(), bytes.size());
}

}  // namespace dkv
