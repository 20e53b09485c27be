// Numbers in messages.
#pragma once

#include <array>
#include <concepts>
#include <cstdio>
#include <string>

namespace dkv {

/// "0.1", "inf": as short as it can be told.
inline std::string text(double value) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%g", value);
    return buffer.data();
}
inline std::string text(std::integral auto value) {
    return std::to_string(value);
}

}  // namespace dkv
