#include "sidecar/files/saved_cache.h"

#include <algorithm>

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
    {FileFormat::Vllm, "vllm", false},
    {FileFormat::Lmcache, "lmcache", false},
};

FormatName const& entry(FileFormat format) noexcept {
    return kFormats[static_cast<std::size_t>(format)];
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
    auto const* const found = std::ranges::find(kFormats, name, &FormatName::name);
    return found == std::end(kFormats) ? std::nullopt : std::optional(found->format);
}

bool is_writable(FileFormat format) noexcept {
    return entry(format).writable;
}

bool is_llama(FileFormat format) noexcept {
    return format == FileFormat::LlamaState || format == FileFormat::LlamaSlot;
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
