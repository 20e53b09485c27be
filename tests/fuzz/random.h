// Choices that a seed repeats, on every machine: the distributions of the standard library do not.
#pragma once

#include <cstdint>
#include <random>
#include <span>

namespace dkv::fuzz {

class Random {
public:
    explicit Random(std::uint64_t seed) : numbers_(seed) {}

    std::uint64_t number() { return numbers_(); }
    /// Of 0 … count - 1.
    std::size_t below(std::size_t count) { return static_cast<std::size_t>(numbers_() % count); }
    bool chance(unsigned percent) { return below(100) < percent; }
    template <class Range>
    auto const& one_of(Range const& range) {
        return range[below(std::size(range))];
    }

private:
    std::mt19937_64 numbers_;
};

}  // namespace dkv::fuzz
