// Elements of a cache from f32 and to it.
#pragma once

#include <bit>
#include <cmath>
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

/// The nearest, ties to even.
inline std::uint16_t rounded_bf16(float value) noexcept {
    auto const bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16U | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U);
}

/// The nearest, ties to even; too large becomes infinite.
inline std::uint16_t rounded_f16(float value) noexcept {
    auto const bits = std::bit_cast<std::uint32_t>(value);
    auto const sign = static_cast<std::uint16_t>(bits >> 16U & 0x8000U);
    std::uint32_t const size = bits & 0x7fffffffU;
    std::uint32_t half = 0;
    if (size > 0x7f800000U) {
        half = 0x7e00U;
    } else if (size >= 0x47800000U) {
        half = 0x7c00U;
    } else if (size < 0x38800000U) {  // Subnormal: a multiple of 2^-24.
        half = static_cast<std::uint32_t>(std::nearbyint(std::bit_cast<float>(size) * 0x1p24f));
    } else {
        std::uint32_t const rounded = size + 0xfffU + (size >> 13U & 1U);
        half = (rounded >> 13U) - ((127U - 15U) << 10U);
    }
    return static_cast<std::uint16_t>(sign | half);
}

/// The nearest, ties to even. `element` need not be aligned.
inline void store_f32(std::byte* element, Dtype dtype, float value) noexcept {
    if (dtype == Dtype::F32) {
        std::memcpy(element, &value, sizeof value);
        return;
    }
    std::uint16_t const bits = dtype == Dtype::F16 ? rounded_f16(value) : rounded_bf16(value);
    std::memcpy(element, &bits, sizeof bits);
}

}  // namespace dkv
