// Handles as text, for a command line.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>

namespace dkv::test {

template <class Handle>
std::string to_hex(Handle const& handle) {
    unsigned char bytes[sizeof handle];
    std::memcpy(bytes, &handle, sizeof handle);
    std::string text;
    for (unsigned char const byte : bytes) {
        char pair[3];
        std::snprintf(pair, sizeof pair, "%02x", byte);
        text += pair;
    }
    return text;
}

template <class Handle>
Handle from_hex(std::string const& text) {
    unsigned char bytes[sizeof(Handle)] = {};
    for (std::size_t i = 0; i < sizeof(Handle) && 2 * i + 1 < text.size(); ++i)
        bytes[i] = static_cast<unsigned char>(std::stoul(text.substr(2 * i, 2), nullptr, 16));
    Handle handle;
    std::memcpy(static_cast<void*>(&handle), bytes, sizeof handle);
    return handle;
}

}  // namespace dkv::test
