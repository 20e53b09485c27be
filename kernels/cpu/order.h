// Scores as integers that sort the same way: what the radix passes of select and tally count. The
// vector code is compiled for several instruction sets and chosen at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace dkv::cpu {

/// keys[i] > keys[j] exactly when scores[i] > scores[j]. -0 and 0 share a key; NaN is 0, below
/// -inf.
void make_keys(std::span<float const> scores, std::uint32_t* keys);

/// Writes the keys in [low, high] to `out`, in their order, and returns how many they are; adds the
/// number of those above `high` to `above`. `out` has room for kKeysSlack more than it gets.
std::size_t collect_keys(std::span<std::uint32_t const> keys,
                         std::uint32_t low,
                         std::uint32_t high,
                         std::uint32_t* out,
                         std::uint64_t& above);

inline constexpr std::size_t kKeysSlack = 64;

/// A key's digits, most significant first.
struct Digit {
    unsigned shift;
    unsigned bits;

    constexpr std::uint32_t of(std::uint32_t key) const noexcept {
        return (key >> shift) & ((1u << bits) - 1);
    }
};

inline constexpr std::array<Digit, 3> kDigits{{{21, 11}, {10, 11}, {0, 10}}};
inline constexpr std::size_t kDigitValues = std::size_t{1} << 11;

/// Two counters per value, for neighbours are often alike, and adding to one counter twice in a row
/// waits for the first addition.
template <class Count>
struct Histogram {
    std::array<std::array<Count, kDigitValues>, 2> counts{};

    void add(Digit digit, std::span<std::uint32_t const> keys) noexcept {
        std::size_t i = 0;
        for (; i + 1 < keys.size(); i += 2) {
            ++counts[0][digit.of(keys[i])];
            ++counts[1][digit.of(keys[i + 1])];
        }
        if (i < keys.size()) ++counts[0][digit.of(keys[i])];
    }
    void add(Histogram const& other) noexcept {
        for (std::size_t value = 0; value < kDigitValues; ++value) {
            counts[0][value] += other.counts[0][value];
            counts[1][value] += other.counts[1][value];
        }
    }
    std::uint64_t operator[](std::uint32_t value) const noexcept {
        return std::uint64_t{counts[0][value]} + counts[1][value];
    }
};

/// The `rank`-th largest key (rank from 1), found digit by digit.
struct Threshold {
    std::uint32_t key = 0;   ///< The digits found so far, the others 0.
    std::uint64_t rank = 0;  ///< Among the keys that share the digits found so far.

    /// `histogram` counts the digit's values among those keys.
    template <class Count>
    void descend(Digit digit, Histogram<Count> const& histogram) noexcept {
        std::uint32_t value = (1u << digit.bits) - 1;
        while (value > 0 && histogram[value] < rank)
            rank -= histogram[value--];
        key |= value << digit.shift;
    }
    /// The largest key that shares the digits down to `digit`.
    std::uint32_t last(Digit digit) const noexcept { return key | ((1u << digit.shift) - 1); }
};

}  // namespace dkv::cpu
