// What text is in a file.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace dkv::test {

inline std::span<std::byte const> bytes_of(std::string const& text) {
    return std::as_bytes(std::span(text));
}

}  // namespace dkv::test
