// Elements of a cache as f32.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "protocol/base/bf16.h"
#include "protocol/base/dtype.h"

namespace dkv {

inline float f32_from_f16(std::uint16_t bits) noexcept {
    std::uint32_t const sign = (bits & 0x8000u) << 16;
    std::uint32_t const exponent = (bits >> 10) & 0x1fu;
    std::uint32_t const fraction = bits & 0x3ffu;
    if (exponent == 0) {  // Zero or subnormal: fraction * 2^-24, which f32 holds exactly.
        float const value = static_cast<float>(fraction) * 0x1p-24f;
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
    }
    std::uint32_t const widened = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
    return std::bit_cast<float>(sign | widened << 23 | fraction << 13);
}

/// `element` need not be aligned.
inline float load_f32(std::byte const* element, Dtype dtype) noexcept {
    if (dtype == Dtype::F32) {
        float value = 0;
        std::memcpy(&value, element, sizeof value);
        return value;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, element, sizeof bits);
    return dtype == Dtype::F16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

}  // namespace dkv
