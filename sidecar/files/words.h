// Foreign words as numbers and facts: what metadata say.
#pragma once

#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/base/dtype.h"
#include "sidecar/files/saved_cache.h"

namespace dkv {

using Metadata = std::map<std::string, std::string, std::less<>>;

inline Error corrupt(std::string message) {
    return {ErrorCode::CorruptData, std::move(message)};
}
inline Error unsupported(std::string message) {
    return {ErrorCode::Unsupported, std::move(message)};
}

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

/// Empty where there is no such key.
std::string_view metadata_text(Metadata const& metadata, std::string_view key);

/// A finite number of at least 0; 0 where there is no such key. Errors: CorruptData.
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
