// Scores as integers that sort the same way: what the radix passes of select and tally count.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace dkv::cpu {

/// a > b exactly when order_key(a) > order_key(b). -0 and 0 share a key; every NaN is 0, below
/// -inf.
inline std::uint32_t order_key(float score) noexcept {
    auto const bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 + 0 is 0.
    std::uint32_t const flip = (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;
    return score == score ? bits ^ flip : 0;
}

/// A key's digits, most significant first.
struct Digit {
    unsigned shift;
    unsigned bits;

    constexpr std::uint32_t of(std::uint32_t key) const noexcept {
        return (key >> shift) & ((1u << bits) - 1);
    }
    /// The digits above this one.
    constexpr std::uint32_t above(std::uint32_t key) const noexcept {
        return shift + bits == 32 ? 0 : key >> (shift + bits);
    }
};

inline constexpr std::array<Digit, 3> kDigits{{{21, 11}, {10, 11}, {0, 10}}};
inline constexpr std::size_t kDigitValues = std::size_t{1} << 11;

/// The `rank`-th largest key (rank from 1), found digit by digit.
struct Threshold {
    std::uint32_t key = 0;
    std::uint64_t rank = 0;  ///< Among the keys that share the digits found so far.

    /// `histogram` counts the digit's values among those keys.
    template <class Histogram>
    void descend(Digit digit, Histogram const& histogram) noexcept {
        std::uint32_t value = (1u << digit.bits) - 1;
        while (value > 0 && histogram[value] < rank)
            rank -= histogram[value--];
        key |= value << digit.shift;
    }
};

}  // namespace dkv::cpu
