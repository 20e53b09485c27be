#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dkv {

/// `text` cut to bytes_max, whatever is not printable UTF-8 replaced by '?': fit for a log or a
/// terminal.
std::string printable(std::string_view text, std::size_t bytes_max);

/// Of an error's message, which may quote what a peer sent.
inline constexpr std::size_t kErrorTextBytesMax = 1000;

}  // namespace dkv
