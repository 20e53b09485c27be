// How much of mapped memory is there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dkv {

/// Bytes of the resident pages that have a byte of the range. 0: the system does not tell.
std::uint64_t resident_bytes(std::byte const* begin, std::uint64_t bytes) noexcept;

}  // namespace dkv
