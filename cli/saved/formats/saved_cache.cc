#include "cli/saved/formats/saved_cache.h"

#include <algorithm>
#include <charconv>

namespace dkv {
namespace {

struct FormatName {
    FileFormat format;
    std::string_view name;
    bool writable;
};
constexpr FormatName kFormats[] = {
    {FileFormat::Dkv, "dkv", true},
    {FileFormat::Hf, "hf", true},
    {FileFormat::LlamaState, "llama-state", true},
    {FileFormat::LlamaSlot, "llama-slot", true},
    {FileFormat::MlxLm, "mlx-lm", true},
    {FileFormat::MlxLm031, "mlx-lm@0.31", true},
    {FileFormat::Vllm, "vllm", false},
    {FileFormat::Lmcache, "lmcache", false},
};

FormatName const& entry(FileFormat format) noexcept {
    return kFormats[static_cast<std::size_t>(format)];
}

constexpr std::string_view kMlxVersion = "mlx-lm@";

/// Cuts the number that `text` begins with, and the dot behind it.
std::optional<unsigned> next_number(std::string_view& text) noexcept {
    unsigned number = 0;
    auto const [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc()) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
    if (text.starts_with('.')) text.remove_prefix(1);
    return number;
}

/// What a version of mlx-lm reads, and no other does.
std::optional<FileFormat> mlx_lm_of(std::string_view version) noexcept {
    auto const major = next_number(version);
    auto const minor = next_number(version);
    if (!major || !minor) return std::nullopt;
    while (!version.empty())
        if (!next_number(version)) return std::nullopt;
    return *major == 0 && *minor < 32 ? FileFormat::MlxLm031 : FileFormat::MlxLm;
}

RowsView rows_of_head(RowsView view,
                      std::vector<std::uint32_t> const& head_rows,
                      std::uint32_t head) {
    bool const whole = head_rows.empty();
    view.data = whole ? view.row(head, 0) : view.row(0, head_rows[head]);
    view.tokens = whole ? view.tokens : head_rows[head + 1] - head_rows[head];
    view.heads = 1;
    return view;
}

}  // namespace

std::string_view name_of(FileFormat format) noexcept {
    return entry(format).name;
}

std::optional<FileFormat> file_format(std::string_view name) noexcept {
    if (name.starts_with(kMlxVersion)) return mlx_lm_of(name.substr(kMlxVersion.size()));
    auto const* const found = std::ranges::find(kFormats, name, &FormatName::name);
    return found == std::end(kFormats) ? std::nullopt : std::optional(found->format);
}

bool is_writable(FileFormat format) noexcept {
    return entry(format).writable;
}

bool is_llama(FileFormat format) noexcept {
    return format == FileFormat::LlamaState || format == FileFormat::LlamaSlot;
}

Error naming(std::filesystem::path const& path, Error error) {
    bool const named = error.message.starts_with(path.string());
    if (!named && error.code != ErrorCode::Cancelled)
        error.message = path.string() + ": " + error.message;
    return error;
}

std::uint64_t CacheFacts::layer_bytes(std::uint32_t layer) const {
    std::uint64_t bytes = stored && !stored->rest_bytes.empty() ? stored->rest_bytes[layer] : 0;
    for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
        bytes += length(layer, head) * stored_bytes();
    return bytes;
}

std::uint64_t CacheFacts::rows_bytes() const {
    std::uint64_t bytes = 0;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
        bytes += layer_bytes(layer);
    return bytes;
}

RowsView SavedLayer::keys_of(std::uint32_t head) const {
    return rows_of_head(keys, head_rows, head);
}

RowsView SavedLayer::values_of(std::uint32_t head) const {
    return rows_of_head(values, head_rows, head);
}

std::span<std::int32_t const> SavedLayer::positions_of(std::uint32_t head) const {
    if (positions.empty()) return {};
    std::size_t const begin = head_rows.empty() ? std::size_t{head} * keys.tokens : head_rows[head];
    return std::span(positions).subspan(begin, keys_of(head).tokens);
}

}  // namespace dkv
