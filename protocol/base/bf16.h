// bfloat16: the upper half of an f32.
#pragma once

#include <bit>
#include <cstdint>

namespace dkv {

inline float f32_from_bf16(std::uint16_t bits) noexcept {
    return std::bit_cast<float>(std::uint32_t{bits} << 16U);
}

/// Of a number that bf16 holds exactly.
inline std::uint16_t bf16_from_f32(float value) noexcept {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U);
}

}  // namespace dkv
