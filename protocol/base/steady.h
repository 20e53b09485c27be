// The steady clock as numbers: it only goes forward, and is the same in every process.
#pragma once

#include <chrono>
#include <cstdint>

namespace dkv {

inline std::uint64_t steady_ns() noexcept {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                          std::chrono::steady_clock::now().time_since_epoch())
                                          .count());
}

inline std::uint64_t steady_ms() noexcept {
    return steady_ns() / 1'000'000;
}

}  // namespace dkv
