#include "sidecar/files/llama_file.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

#include "sidecar/files/check_bytes.h"
#include "sidecar/files/llama_cache.h"

namespace dkv {
namespace {

std::string words_of(LlamaLayout const& layout) {
    switch (layout.kind) {
        case LlamaKind::Sequence: return fmt::format("llama.cpp slot (GGSQ {})", layout.version);
        case LlamaKind::Session:
            return fmt::format("llama.cpp session of {} (GGSN {})", layout.arch, layout.version);
        case LlamaKind::Blob: return "llama.cpp sequence state";
        case LlamaKind::Bare: return "llama.cpp sequence state without a magic";
    }
    return "";
}

}  // namespace

Result<std::unique_ptr<LlamaCache>> LlamaCache::open(MappedFile mapped,
                                                     std::filesystem::path const& path,
                                                     OpenOptions const& options) {
    auto cache = std::make_unique<LlamaCache>(std::move(mapped), path);
    bool const bare =
        options.format == FileFormat::LlamaState && !is_llama_file(cache->mapped_.bytes());
    cache->layout_ = DKV_TRY(parse_llama(cache->mapped_.bytes(), bare));
    DKV_TRY(cache->order_cells());
    DKV_TRY(cache->describe(options));
    return cache;
}

Result<void> LlamaCache::order_cells() {
    auto const& cells = layout_.positions;
    if (!std::ranges::is_sorted(cells)) {
        order_.resize(cells.size());
        std::iota(order_.begin(), order_.end(), 0U);
        std::ranges::sort(order_, {}, [&](std::uint32_t cell) { return cells[cell]; });
    }
    positions_ = cells;
    std::ranges::sort(positions_);
    auto const twice = std::ranges::adjacent_find(positions_);
    if (twice != positions_.end())
        return Error{ErrorCode::CorruptData, fmt::format("two cells are at position {}", *twice)};
    facts_.prompt_tokens = static_cast<std::uint32_t>(positions_.back()) + 1;
    facts_.compacted = facts_.prompt_tokens > positions_.size();
    if (!facts_.compacted) positions_.clear();
    return {};
}

Result<void> LlamaCache::describe(OpenOptions const& options) {
    if (options.kv_heads == 0)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("llama.cpp does not save how its rows of {} elements divide into "
                                 "heads: say how many KV heads the model has (--kv-heads)",
                                 layout_.row_elements)};
    if (layout_.row_elements % options.kv_heads != 0)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("rows of {} elements do not divide into {} KV heads (--kv-heads)",
                                 layout_.row_elements, options.kv_heads)};
    auto const head_dim = layout_.row_elements / options.kv_heads;
    facts_.geometry = {.layers = static_cast<std::uint32_t>(layout_.keys.size()),
                       .q_heads = options.kv_heads,
                       .kv_heads = options.kv_heads,
                       .head_dim = static_cast<std::uint32_t>(std::min<std::uint64_t>(
                           head_dim, std::numeric_limits<std::uint32_t>::max())),
                       .dtype = layout_.dtype};
    DKV_TRY(check(facts_.geometry));
    bool const blob = layout_.kind == LlamaKind::Blob || layout_.kind == LlamaKind::Bare;
    facts_.format = blob ? FileFormat::LlamaState : FileFormat::LlamaSlot;
    facts_.format_words = words_of(layout_);
    facts_.model = options.model;
    facts_.rope = options.rope;
    facts_.lengths.assign(std::size_t{facts_.geometry.layers} * facts_.geometry.kv_heads,
                          static_cast<std::uint32_t>(layout_.positions.size()));
    // A list that is longer has tokens that were never computed; a shorter one is of no use.
    if (layout_.tokens.size() >= facts_.prompt_tokens)
        facts_.tokens.assign(layout_.tokens.begin(), layout_.tokens.begin() + facts_.prompt_tokens);
    facts_.file_bytes = mapped_.bytes().size();
    return {};
}

std::uint64_t LlamaCache::part_bytes() const noexcept {
    return layout_.positions.size() * layout_.row_elements * bytes_of(layout_.dtype);
}

SavedLayer LlamaCache::views(std::byte const* keys, std::byte const* values) const {
    auto const& geometry = facts_.geometry;
    auto const cells = static_cast<std::uint32_t>(layout_.positions.size());
    SavedLayer layer;
    layer.keys = {.data = const_cast<std::byte*>(keys),
                  .dtype = geometry.dtype,
                  .heads = geometry.kv_heads,
                  .tokens = cells,
                  .head_dim = geometry.head_dim,
                  .head_stride = geometry.head_dim,
                  .token_stride = layout_.row_elements,
                  .dim_stride = 1};
    layer.values = layer.keys;
    layer.values.data = const_cast<std::byte*>(values);
    if (layout_.transposed) {
        layer.values.head_stride = std::uint64_t{geometry.head_dim} * cells;
        layer.values.token_stride = 1;
        layer.values.dim_stride = cells;
    }
    for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
        layer.positions.insert(layer.positions.end(), positions_.begin(), positions_.end());
    return layer;
}

void LlamaCache::bring_together(std::uint32_t layer, std::span<std::byte> target) const {
    std::size_t const element = bytes_of(layout_.dtype);
    std::size_t const cells = order_.size();
    std::byte* out = target.data();
    auto const copy_rows = [&](std::byte const* source, std::size_t row_bytes) {
        for (std::uint32_t const cell : order_) {
            std::memcpy(out, source + cell * row_bytes, row_bytes);
            out += row_bytes;
        }
    };
    std::byte const* const keys = mapped_.bytes().data() + layout_.keys[layer];
    std::byte const* const values = mapped_.bytes().data() + layout_.values[layer];
    copy_rows(keys, layout_.row_elements * element);
    if (!layout_.transposed) return copy_rows(values, layout_.row_elements * element);
    for (std::uint64_t dim = 0; dim < layout_.row_elements; ++dim)
        copy_rows(values + dim * cells * element, element);
}

Result<SavedLayer> LlamaCache::layer(std::uint32_t index) const {
    if (order_.empty())
        return views(mapped_.bytes().data() + layout_.keys.at(index),
                     mapped_.bytes().data() + layout_.values.at(index));
    auto const rows = std::make_shared<std::vector<std::byte>>(2 * part_bytes());
    bring_together(index, *rows);
    auto layer = views(rows->data(), rows->data() + part_bytes());
    layer.hold = rows;
    return layer;
}

Result<void> LlamaCache::verify(std::uint32_t layer) const {
    auto const check = [&](char const* part, std::uint64_t offset) -> Result<void> {
        auto const rows = mapped_.bytes().subspan(offset, part_bytes());
        if (!check_bytes(rows, layout_.dtype, false).not_finite) return {};
        return Error{ErrorCode::CorruptData, fmt::format("{}: {} of layer {} has a NaN or an Inf",
                                                         path_.string(), part, layer)};
    };
    DKV_TRY(check("K", layout_.keys.at(layer)));
    return check("V", layout_.values.at(layer));
}

bool is_llama_file(std::span<std::byte const> bytes) noexcept {
    std::uint32_t magic = 0;
    if (bytes.size() < sizeof magic) return false;
    std::memcpy(&magic, bytes.data(), sizeof magic);
    return magic == kLlamaSequenceMagic || magic == kLlamaSessionMagic || magic == kLlamaBlobMagic;
}

Result<std::unique_ptr<SavedCache>> open_llama_file(MappedFile mapped,
                                                    std::filesystem::path const& path,
                                                    OpenOptions const& options) {
    auto cache = LlamaCache::open(std::move(mapped), path, options);
    if (!cache) return Error{cache.error().code, path.string() + ": " + cache.error().message};
    return std::unique_ptr<SavedCache>(std::move(cache).value());
}

}  // namespace dkv
