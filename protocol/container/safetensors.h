// The container: u64 little-endian header length, a JSON header, then the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/container/mapped_file.h"

namespace dkv {

constexpr std::uint64_t kLengthBytes = 8;  ///< Of the header's length, in front of the header.

/// Of one element of the format's dtype of this name; nothing where there is none.
std::optional<std::uint64_t> element_bytes(std::string_view dtype) noexcept;

/// A tensor as the file has it; `bytes` are the file's and need not be aligned.
struct FileTensor {
    std::string dtype;  ///< "F32", "BF16", "I32" …
    std::vector<std::uint64_t> shape;
    std::span<std::byte const> bytes;
};

/// Where everything lies, checked: each tensor within the file, as many bytes as its shape and
/// dtype say, no two on the same bytes, none between them unused.
struct TensorTable {
    std::map<std::string, FileTensor, std::less<>> tensors;
    std::map<std::string, std::string, std::less<>> metadata;
    std::string_view header;  ///< The JSON, in the file, with the blanks behind it.
};

/// Foreign text in a message: in quotes, short, and without what would paint a terminal.
std::string shown(std::string_view text);

/// `file` is a whole file and outlives the table.
///
/// Errors: CorruptData, saying what is wrong and where: a length that does not fit, a header that
/// is not a JSON object or has a name twice, an unknown dtype, sizes that disagree or overflow,
/// tensors that overlap or leave holes.
Result<TensorTable> parse_safetensors(std::span<std::byte const> file);

}  // namespace dkv
