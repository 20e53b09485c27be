#include "cli/saved/formats/llama_file.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

#include "cli/saved/formats/check_bytes.h"
#include "cli/saved/formats/llama_cache.h"
#include "cli/saved/formats/words.h"
#include "kernels/host.h"

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

std::string words_of(LlamaRows const& keys, LlamaRows const& values) {
    auto words = keys.type == values.type
                     ? std::string(keys.type->name)
                     : fmt::format("K {}, V {}", keys.type->name, values.type->name);
    if (keys.rotation != 0) words += fmt::format(", K rotated by {}", keys.rotation);
    if (values.rotation != 0) words += fmt::format(", V rotated by {}", values.rotation);
    return words;
}

/// A head's row is whole blocks, and what rotates it lies inside it.
Result<void> check_rows(char const* part, LlamaRows const& rows, std::uint32_t head_dim) {
    if (head_dim % rows.type->block_elements != 0)
        return unsupported(fmt::format(
            "{} is {}, in blocks of {}, and a head has {} dims: heads that are not whole blocks "
            "cannot be told apart. Save it with -ctk f16 -ctv f16, or check --kv-heads",
            part, rows.type->name, rows.type->block_elements, head_dim));
    if (rows.rotation != 0 && head_dim % rows.rotation != 0)
        return corrupt(fmt::format("{} is rotated by {}, and a head has {} dims (--kv-heads)", part,
                                   rows.rotation, head_dim));
    return {};
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
        return Error{
            ErrorCode::InvalidArgument,
            fmt::format("llama.cpp does not save how its rows of {} elements divide into "
                        "heads: say how many KV heads the model has (--kv-heads), or give its "
                        "GGUF file (--model)",
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
                       .dtype = layout_.is_plain() ? *layout_.key_rows.type->dtype : Dtype::F32};
    DKV_TRY(check(facts_.geometry));
    DKV_TRY(describe_rows());
    bool const blob = layout_.kind == LlamaKind::Blob || layout_.kind == LlamaKind::Bare;
    facts_.format = blob ? FileFormat::LlamaState : FileFormat::LlamaSlot;
    facts_.format_words = words_of(layout_);
    facts_.model = options.model;
    facts_.rope = options.rope;
    facts_.rope.order_known = options.rope.theta != 0;
    // What is made of it may become llama.cpp's again, and each of its versions loads its own only.
    facts_.provenance[kLlamaVersion] = layout_.says_rotation ? "4" : "3";
    auto const& checkpoints = layout_.checkpoints;
    if (checkpoints.bytes > 0)
        facts_.checkpoints = fmt::format("{} of a server (SCKP {}), {} bytes", checkpoints.count,
                                         checkpoints.version, checkpoints.bytes);
    if (checkpoints.newest_bytes > 0)
        facts_.sliding_checkpoint = {checkpoints.newest_tokens, checkpoints.newest_bytes};
    if (layout_.media > 0) facts_.media = fmt::format("{} in the token section", layout_.media);
    if (auto const& sliding = layout_.sliding; sliding.layers > 0) {
        facts_.sliding =
            fmt::format("{} layers with a sliding window of {} cells, left as they are",
                        sliding.layers, sliding.cells);
        facts_.sliding_bytes = sliding.bytes;
    }
    facts_.lengths.assign(std::size_t{facts_.geometry.layers} * facts_.geometry.kv_heads,
                          static_cast<std::uint32_t>(layout_.positions.size()));
    // A list that is longer has tokens that were never computed; a shorter one is of no use.
    if (layout_.tokens.size() >= facts_.prompt_tokens)
        facts_.tokens.assign(layout_.tokens.begin(), layout_.tokens.begin() + facts_.prompt_tokens);
    facts_.file_bytes = mapped_.bytes().size();
    return {};
}

Result<void> LlamaCache::describe_rows() {
    auto const& keys = layout_.key_rows;
    auto const& values = layout_.value_rows;
    auto const head_dim = facts_.geometry.head_dim;
    DKV_TRY(check_rows("K", keys, head_dim));
    DKV_TRY(check_rows("V", values, head_dim));
    if (layout_.is_plain()) return {};
    bool const quantised = !keys.type->dtype || !values.type->dtype;
    facts_.stored = StoredRows{.type = words_of(keys, values),
                               .key_row_bytes = keys.type->bytes(head_dim),
                               .value_row_bytes = values.type->bytes(head_dim),
                               .rotation_unknown = quantised && !layout_.says_rotation};
    return {};
}

std::uint64_t LlamaCache::row_bytes(LlamaRows const& rows) const noexcept {
    return rows.type->bytes(layout_.row_elements);
}

RowsView LlamaCache::stored_view(LlamaRows const& rows,
                                 std::byte const* data,
                                 bool transposed) const {
    auto const dtype = rows.type->dtype.value_or(Dtype::F16);  // Blocks are of even sizes.
    auto const elements_in = [&](std::uint64_t bytes) { return bytes / bytes_of(dtype); };
    RowsView view{.data = const_cast<std::byte*>(data),
                  .dtype = dtype,
                  .heads = facts_.geometry.kv_heads,
                  .tokens = static_cast<std::uint32_t>(layout_.positions.size()),
                  .head_dim = static_cast<std::uint32_t>(
                      elements_in(rows.type->bytes(facts_.geometry.head_dim)))};
    view.head_stride = view.head_dim;
    view.token_stride = elements_in(row_bytes(rows));
    if (transposed) {
        view.head_stride = std::uint64_t{view.head_dim} * view.tokens;
        view.token_stride = 1;
        view.dim_stride = view.tokens;
    }
    return view;
}

void LlamaCache::bring_together(LlamaRows const& rows,
                                std::byte const* source,
                                bool transposed,
                                std::byte* target) const {
    std::size_t const element = rows.type->block_bytes;
    std::size_t const step = transposed ? element : row_bytes(rows);
    std::uint64_t const times = transposed ? layout_.row_elements : 1;
    for (std::uint64_t dim = 0; dim < times; ++dim, source += order_.size() * step)
        for (std::uint32_t const cell : order_) {
            std::memcpy(target, source + cell * step, step);
            target += step;
        }
}

SavedLayer LlamaCache::stored(std::uint32_t index) const {
    std::byte const* keys = mapped_.bytes().data() + layout_.keys.at(index);
    std::byte const* values = mapped_.bytes().data() + layout_.values.at(index);
    SavedLayer layer;
    if (!order_.empty()) {
        auto const key_bytes = order_.size() * row_bytes(layout_.key_rows);
        auto const value_bytes = order_.size() * row_bytes(layout_.value_rows);
        auto const held = std::make_shared<std::vector<std::byte>>(key_bytes + value_bytes);
        bring_together(layout_.key_rows, keys, false, held->data());
        bring_together(layout_.value_rows, values, layout_.transposed, held->data() + key_bytes);
        keys = held->data();
        values = held->data() + key_bytes;
        layer.hold = held;
    }
    layer.keys = stored_view(layout_.key_rows, keys, false);
    layer.values = stored_view(layout_.value_rows, values, layout_.transposed);
    for (std::uint32_t head = 0; head < facts_.geometry.kv_heads; ++head)
        layer.positions.insert(layer.positions.end(), positions_.begin(), positions_.end());
    return layer;
}

/// `out` [kv_heads, cells, head_dim]
RowsView LlamaCache::as_f32(LlamaRows const& rows,
                            RowsView const& view,
                            std::span<float> out) const {
    std::uint32_t const head_dim = facts_.geometry.head_dim;
    std::span<float> left = out;
    for (std::uint32_t head = 0; head < view.heads; ++head)
        for (std::uint32_t token = 0; token < view.tokens; ++token) {
            auto const row = left.first(head_dim);
            left = left.subspan(head_dim);
            if (view.dim_stride == 1)
                dequantise(*rows.type, view.row(head, token), row);
            else
                for (std::uint32_t dim = 0; dim < head_dim; ++dim)
                    row[dim] = load_f32(
                        view.row(head, token) + dim * view.dim_stride * bytes_of(view.dtype),
                        view.dtype);
            if (rows.rotation != 0) turn_by_hadamard(row, rows.rotation);
        }
    return dense_rows(reinterpret_cast<std::byte*>(out.data()), Dtype::F32, view.heads, view.tokens,
                      head_dim);
}

Result<SavedLayer> LlamaCache::layer(std::uint32_t index) const {
    auto layer = stored(index);
    if (layout_.is_plain()) return layer;
    std::size_t const elements = layout_.positions.size() * layout_.row_elements;
    auto const rows = std::make_shared<std::vector<float>>(2 * elements);
    auto const both = std::span(*rows);
    layer.keys = as_f32(layout_.key_rows, layer.keys, both.first(elements));
    layer.values = as_f32(layout_.value_rows, layer.values, both.subspan(elements));
    layer.hold = rows;
    return layer;
}

Result<void> LlamaCache::verify_part(char const* part,
                                     std::uint32_t layer,
                                     LlamaRows const& rows,
                                     std::uint64_t offset) const {
    auto const* const bytes = mapped_.bytes().data() + offset;
    std::uint64_t const part_bytes = layout_.positions.size() * row_bytes(rows);
    bool finite = true;
    if (rows.type->dtype) {
        finite = !check_bytes({bytes, part_bytes}, *rows.type->dtype, false).not_finite;
    } else {
        std::vector<float> row(layout_.row_elements);
        for (std::uint64_t at = 0; at < part_bytes && finite; at += row_bytes(rows)) {
            dequantise(*rows.type, bytes + at, row);
            finite = !check_bytes(std::as_bytes(std::span(row)), Dtype::F32, false).not_finite;
        }
    }
    if (finite) return {};
    return Error{ErrorCode::CorruptData, fmt::format("{}: {} of layer {} has a NaN or an Inf",
                                                     path_.string(), part, layer)};
}

Result<void> LlamaCache::verify(std::uint32_t layer) const {
    DKV_TRY(verify_part("K", layer, layout_.key_rows, layout_.keys.at(layer)));
    return verify_part("V", layer, layout_.value_rows, layout_.values.at(layer));
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
