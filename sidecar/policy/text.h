// Numbers in messages.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

namespace dkv {

/// "0.1", "inf": as short as it can be told.
inline std::string text(double value) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%g", value);
    return buffer.data();
}
inline std::string text(std::uint32_t value) {
    return std::to_string(value);
}

}  // namespace dkv
