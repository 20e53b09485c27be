// Rows of a cache for tests: any dtype, any strides, and the exact values that the bytes stand for.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/tensor_view.h"

namespace dkv::test {

inline std::uint16_t f16_bits(float value) {
    auto const sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    double const size = std::abs(static_cast<double>(value));
    if (std::isnan(size)) return 0x7e00;
    if (size >= 65520) return static_cast<std::uint16_t>(sign | 0x7c00);
    int const exponent = size == 0 ? -14 : std::max(std::ilogb(size), -14);
    double const fraction = std::nearbyint(std::ldexp(size, 10 - exponent));
    return static_cast<std::uint16_t>(sign + (exponent + 14) * 1024 + static_cast<int>(fraction));
}

inline float f16_value(std::uint16_t bits) {
    int const exponent = (bits >> 10) & 31;
    int const fraction = bits & 1023;
    double size =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) size = fraction == 0 ? HUGE_VAL : std::nan("");
    return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
}

inline void store(std::byte* element, Dtype dtype, float value) {
    if (dtype == Dtype::F32) {
        std::memcpy(element, &value, sizeof value);
        return;
    }
    auto const bits = dtype == Dtype::F16
                          ? f16_bits(value)
                          : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    std::memcpy(element, &bits, sizeof bits);
}

inline float load(std::byte const* element, Dtype dtype) {
    float value = 0;
    if (dtype == Dtype::F32) {
        std::memcpy(&value, element, sizeof value);
        return value;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, element, sizeof bits);
    return dtype == Dtype::F16 ? f16_value(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
}

enum class Layout : std::uint8_t {
    HeadMajor,   ///< [heads][tokens][dim], as HF and vLLM HND.
    TokenMajor,  ///< [tokens][heads][dim], as vLLM NHD.
    DimMajor,    ///< [heads][dim][tokens]: no row is contiguous.
    Odd,         ///< Gaps everywhere, and a first byte that is not even aligned to an element.
};

/// Owns the bytes that `view` shows.
struct Rows {
    Rows(Dtype dtype,
         std::uint32_t heads,
         std::uint32_t tokens,
         std::uint32_t head_dim,
         Layout layout = Layout::HeadMajor)
        : view(dense_rows(nullptr, dtype, heads, tokens, head_dim)) {
        if (layout == Layout::TokenMajor) {
            view.head_stride = head_dim;
            view.token_stride = std::uint64_t{heads} * head_dim;
        } else if (layout == Layout::DimMajor) {
            view.token_stride = 1;
            view.dim_stride = tokens;
        } else if (layout == Layout::Odd) {
            view.dim_stride = 3;
            view.token_stride = 3 * head_dim + 1;
            view.head_stride = view.token_stride * tokens + 5;
        }
        bytes.resize(extent_bytes(view).value() + 1);
        view.data = bytes.data() + (layout == Layout::Odd ? 1 : 0);
    }
    Rows(Rows&&) = default;  // The vector's bytes stay where they are.
    Rows& operator=(Rows&&) = default;

    /// Moves the first byte to `skew` bytes behind a multiple of 16; what was filled is lost.
    void begin_at(std::size_t skew) {
        std::size_t const size = bytes.size();
        bytes.assign(size + skew + 16, std::byte{0});
        auto const begin = reinterpret_cast<std::uintptr_t>(bytes.data());
        view.data = bytes.data() + (16 - begin % 16) % 16 + skew;
    }

    std::byte* element(std::uint32_t head, std::uint32_t token, std::uint32_t dim) const {
        return view.row(head, token) + dim * view.dim_stride * bytes_of(view.dtype);
    }
    void set(std::uint32_t head, std::uint32_t token, std::uint32_t dim, float value) {
        store(element(head, token, dim), view.dtype, value);
    }
    float get(std::uint32_t head, std::uint32_t token, std::uint32_t dim) const {
        return load(element(head, token, dim), view.dtype);
    }
    template <class Make>
    Rows& fill(Make make) {
        for (std::uint32_t head = 0; head < view.heads; ++head)
            for (std::uint32_t token = 0; token < view.tokens; ++token)
                for (std::uint32_t dim = 0; dim < view.head_dim; ++dim)
                    set(head, token, dim, make(head, token, dim));
        return *this;
    }
    Rows& fill_normal(std::mt19937& random, float deviation = 1) {
        std::normal_distribution<float> normal(0, deviation);
        return fill([&](auto...) { return normal(random); });
    }

    std::vector<std::byte> bytes;
    RowsView view;
};

}  // namespace dkv::test
