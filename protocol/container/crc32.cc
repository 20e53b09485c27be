#include "protocol/container/crc32.h"

#include <isa-l/crc.h>

namespace dkv {

std::uint32_t crc32(std::uint32_t crc, std::span<std::byte const> bytes) noexcept {
    if (bytes.empty()) return crc;  // The pointer may be null.
    return crc32_gzip_refl(crc, reinterpret_cast<unsigned char const*>(bytes.data()), bytes.size());
}

}  // namespace dkv
