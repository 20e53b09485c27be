// Foreign words as numbers and facts: what metadata say.
#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/base/dtype.h"

namespace dkv {

/// Of heads, rows and head_dim in a file: beyond any cache, and products of them stay within 64
/// bits.
constexpr std::uint64_t kExtentMax = std::numeric_limits<std::int32_t>::max();
/// Beyond any model.
constexpr std::uint32_t kLayersMax = 1024;

using Metadata = std::map<std::string, std::string, std::less<>>;

/// All of `text`, or nothing.
template <class T>
std::optional<T> number_of(std::string_view text) {
    T value{};
    auto const* const end = text.data() + text.size();
    auto const [rest, error] = std::from_chars(text.data(), end, value);
    return error == std::errc() && rest == end ? std::optional(value) : std::nullopt;
}

/// Of the container's word: "F32", "F16", "BF16".
std::optional<Dtype> cache_dtype(std::string_view word) noexcept;

/// Errors: Unsupported "k_0 is I8, not F32, F16 or BF16", saying so where the dtype is that of
/// quantised rows.
Result<Dtype> need_cache_dtype(std::string_view tensor, std::string_view word);

/// Empty without such a key.
std::string_view metadata_text(Metadata const& metadata, std::string_view key);

/// A finite number of at least 0; 0 without such a key. Errors: CorruptData.
Result<double> metadata_number(Metadata const& metadata, std::string_view key);

/// The keys rope.theta, rope.interleaved, rope.dims and rope.scaling. Errors: CorruptData.
Result<RopeFacts> metadata_rope(Metadata const& metadata);

/// What the user says goes before what a file says.
void apply_options(OpenOptions const& options, CacheFacts& facts);

/// `error`, beginning with the path.
inline Error located(std::filesystem::path const& path, Error const& error) {
    return {error.code, path.string() + ": " + error.message};
}

}  // namespace dkv
