#include "cli/saved/formats/llama_write.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include <fmt/format.h>

#include "cli/saved/formats/llama_cache.h"
#include "protocol/container/new_file.h"

namespace dkv {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20U;
constexpr std::uint64_t kPartHeadBytes = 12;  // Before K or V of a layer.

using Bytes = std::vector<std::byte>;

template <class T>
requires std::is_arithmetic_v<T>
void put(Bytes& bytes, T value) {
    auto const words = std::as_bytes(std::span(&value, 1));
    bytes.insert(bytes.end(), words.begin(), words.end());
}

void put(Bytes& bytes, std::span<std::byte const> more) {
    bytes.insert(bytes.end(), more.begin(), more.end());
}

/// K, or V, of every layer.
struct PartPlan {
    GgmlType const* type = nullptr;
    std::uint64_t row_bytes = 0;
};

/// What there is around the rows.
struct LlamaPlan {
    Bytes head;       ///< Up to the cell count.
    Bytes cell_tail;  ///< What follows the position in each cell.
    Bytes rotation;   ///< The words of it, where the version has them.
    Bytes tail;       ///< Empty streams, sliding layers, checkpoints.
    bool transposed = false;
    std::uint32_t cells = 0;
    Geometry geometry;
    PartPlan keys;
    PartPlan values;

    std::uint64_t row_elements() const {
        return std::uint64_t{geometry.kv_heads} * geometry.head_dim;
    }
    void set_types(GgmlType const& of_keys, GgmlType const& of_values) {
        keys = {&of_keys, of_keys.bytes(row_elements())};
        values = {&of_values, of_values.bytes(row_elements())};
    }
    std::uint64_t part_bytes(PartPlan const& part) const {
        return kPartHeadBytes + cells * part.row_bytes;
    }
    std::uint64_t cells_offset() const { return head.size() + sizeof(std::uint32_t); }
    std::uint64_t data_offset() const {
        return cells_offset() + cells * (sizeof(std::int32_t) + cell_tail.size());
    }
    std::uint64_t keys_offset(std::uint32_t layer) const {
        return data_offset() + 2 * sizeof(std::uint32_t) + rotation.size() +
               layer * part_bytes(keys);
    }
    std::uint64_t values_offset(std::uint32_t layer) const {
        return keys_offset(geometry.layers) + layer * part_bytes(values);
    }
    std::uint64_t end_offset() const { return values_offset(geometry.layers); }
    std::uint64_t file_bytes() const { return end_offset() + tail.size(); }
};

/// The number of rows that every layer and head has.
Result<std::uint32_t> common_length(CacheFacts const& facts) {
    DKV_ASSERT(!facts.lengths.empty());
    auto const [least, most] = std::ranges::minmax(facts.lengths);
    if (least != most)
        return Error{ErrorCode::Unsupported,
                     fmt::format("llama.cpp has one table of cells for all layers and heads, but "
                                 "{} to {} rows are kept: fill the smaller ones up (--fill), or "
                                 "take a policy of equal budgets",
                                 least, most)};
    if (most == 0)
        return Error{ErrorCode::Unsupported, "llama.cpp's format does not hold a cache of no rows"};
    return most;
}

/// `version` of a slot.
void put_own_head(Bytes& head, FileFormat format, std::uint32_t version, CacheFacts const& facts) {
    if (format == FileFormat::LlamaState) {
        put(head, kLlamaBlobMagic);
        put(head, std::int32_t{0});
        return;
    }
    put(head, kLlamaSequenceMagic);
    put(head, version);
    put(head, static_cast<std::uint32_t>(facts.tokens.size()));
    put(head, std::as_bytes(std::span(facts.tokens)));
}

void put_own_cell_tail(LlamaPlan& plan) {
    put(plan.cell_tail, std::uint32_t{1});
    put(plan.cell_tail, std::int32_t{0});
}

/// Head, cells and tail as the source has them; another head where the format is another.
Result<void> take_from(LlamaCache const& source, WriteRequest const& request, LlamaPlan& plan) {
    auto const& layout = source.layout();
    auto const& geometry = source.geometry();
    if (geometry.dtype != plan.geometry.dtype)
        return Error{ErrorCode::Unsupported,
                     fmt::format("llama.cpp loads rows only as it saved them: {}, not {}",
                                 name_of(geometry.dtype), name_of(plan.geometry.dtype))};
    if (geometry.layers != plan.geometry.layers || geometry.kv_heads != plan.geometry.kv_heads ||
        geometry.head_dim != plan.geometry.head_dim)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("the rows are of {}, but the file they come from has {}",
                                 describe(plan.geometry), describe(geometry))};
    auto const bytes = source.bytes();
    plan.transposed = layout.transposed;
    plan.set_types(*layout.key_rows.type, *layout.value_rows.type);
    if (layout.says_rotation) {
        put(plan.rotation, layout.key_rows.rotation);
        put(plan.rotation, layout.value_rows.rotation);
    }
    bool const same = request.format == source.facts().format;
    // A server's checkpoints are a slot's, and but for those of sliding layers of the whole cache.
    bool const whole = same && plan.cells == layout.positions.size();
    auto const& checkpoints = layout.checkpoints;
    auto const end = bytes.size() - (whole ? 0 : checkpoints.bytes);
    put(plan.tail, bytes.first(end).subspan(layout.end_offset));
    if (same && !whole && checkpoints.newest_bytes > 0) {
        put(plan.tail, kLlamaCheckpointMagic);
        put(plan.tail, checkpoints.version);
        put(plan.tail, std::uint32_t{1});
        put(plan.tail, bytes.subspan(checkpoints.newest_offset, checkpoints.newest_bytes));
    }
    if (!same)
        put_own_head(plan.head, request.format, layout.says_rotation ? kLlamaSequenceVersion : 3,
                     request.facts);
    auto const begin = same ? 0 : layout.streams_offset;
    put(plan.head, bytes.subspan(begin, layout.count_offset - begin));
    if (same)
        put(plan.cell_tail, bytes.subspan(layout.cells_offset() + sizeof(std::int32_t),
                                          layout.cell_bytes - sizeof(std::int32_t)));
    else
        put_own_cell_tail(plan);
    return {};
}

/// Of what did not come from llama.cpp: the newest, unless it once did and says otherwise.
std::uint32_t version_of(CacheFacts const& facts) {
    auto const said = facts.provenance.find(kLlamaVersion);
    return said != facts.provenance.end() && said->second == "3" ? 3 : kLlamaSequenceVersion;
}

Result<LlamaPlan> plan_of(WriteRequest const& request) {
    LlamaPlan plan;
    DKV_TRY(written_key_order(request));
    plan.geometry = request.facts.geometry;
    plan.cells = DKV_TRY(common_length(request.facts));
    if (auto const* const source = dynamic_cast<LlamaCache const*>(request.source)) {
        DKV_TRY(take_from(*source, request, plan));
        return plan;
    }
    auto const version = version_of(request.facts);
    auto const& type = ggml_type(plan.geometry.dtype);
    plan.set_types(type, type);
    if (version >= kLlamaSequenceVersion) plan.rotation.resize(2 * sizeof(std::uint32_t));
    put_own_head(plan.head, request.format, version, request.facts);
    put(plan.head, std::uint32_t{1});
    put_own_cell_tail(plan);
    return plan;
}

/// Consecutive bytes of the file, written in large pieces.
class PendingBytes {
public:
    PendingBytes(NewFile& file, std::uint64_t offset) : file_(file), offset_(offset) {
        bytes_.reserve(kChunkBytes);
    }

    /// Room for `count` bytes.
    Result<std::byte*> next(std::size_t count) {
        if (bytes_.size() + count > kChunkBytes) DKV_TRY(flush());
        bytes_.resize(bytes_.size() + count);
        return bytes_.data() + bytes_.size() - count;
    }
    Result<void> flush() {
        DKV_TRY(file_.rewrite(offset_, bytes_));
        offset_ += bytes_.size();
        bytes_.clear();
        return {};
    }

private:
    NewFile& file_;
    std::uint64_t offset_;
    Bytes bytes_;
};

/// One layer's heads, and which of their rows go where.
class LayerRows {
public:
    /// `moved`: the rows that are written; those of `rows`, or the same as llama.cpp stored them.
    LayerRows(RowsToWrite const& rows, SavedLayer const& moved, LlamaPlan const& plan)
        : rows_(rows), cells_(plan.cells) {
        for (std::uint32_t head = 0; head < plan.geometry.kv_heads; ++head) {
            keys_.push_back(moved.keys_of(head));
            values_.push_back(moved.values_of(head));
        }
        DKV_ASSERT(rows.rows.empty() || rows.rows.size() == keys_.size() * cells_);
    }

    Result<void> write_keys(PendingBytes& chunk, KeyReorder& reorder) const {
        return write_rows(keys_, chunk, &reorder);
    }

    Result<void> write_values(PendingBytes& chunk, bool transposed) const {
        if (!transposed) return write_rows(values_, chunk, nullptr);
        for (std::uint32_t head = 0; head < values_.size(); ++head)
            for (std::uint32_t dim = 0; dim < values_[head].head_dim; ++dim)
                DKV_TRY(write_dim(head, dim, chunk));
        return {};
    }

    /// A cell stands for a row of every layer and head, each at a position of its own. All that
    /// llama.cpp does with the cell's position is to mask it from earlier queries (the keys are
    /// turned already), so it may be any that no query to come precedes: the largest of its rows'
    /// is, and as each head's positions ascend, so do the largest.
    void raise(std::span<std::int32_t> positions) const {
        for (std::uint32_t head = 0; head < keys_.size(); ++head) {
            auto const of_rows = rows_.source.positions_of(head);
            for (std::uint32_t cell = 0; cell < cells_; ++cell) {
                auto const row = row_of(head, cell);
                auto const position =
                    of_rows.empty() ? static_cast<std::int32_t>(row) : of_rows[row];
                positions[cell] = std::max(positions[cell], position);
            }
        }
    }

private:
    std::uint32_t row_of(std::uint32_t head, std::uint32_t cell) const {
        if (rows_.rows.empty()) return cell;
        auto const row = rows_.rows[std::size_t{head} * cells_ + cell];
        return static_cast<std::uint32_t>(row);
    }

    Result<void> write_rows(std::vector<RowsView> const& heads,
                            PendingBytes& chunk,
                            KeyReorder* reorder) const {
        for (std::uint32_t cell = 0; cell < cells_; ++cell)
            for (std::uint32_t head = 0; head < heads.size(); ++head) {
                RowsView const& view = heads[head];
                auto const element = bytes_of(view.dtype);
                auto const row = row_of(head, cell);
                DKV_ASSERT(row < view.tokens);
                std::byte* const out = DKV_TRY(chunk.next(view.row_bytes()));
                std::byte const* const source = view.row(0, row);
                if (view.dim_stride == 1)
                    std::memcpy(out, source, view.row_bytes());
                else
                    for (std::uint32_t dim = 0; dim < view.head_dim; ++dim)
                        std::memcpy(out + dim * element, source + dim * view.dim_stride * element,
                                    element);
                if (reorder != nullptr) reorder->apply({out, view.row_bytes()});
            }
        return {};
    }

    /// One dim of a head in every cell.
    Result<void> write_dim(std::uint32_t head, std::uint32_t dim, PendingBytes& chunk) const {
        RowsView const& view = values_[head];
        auto const element = bytes_of(view.dtype);
        for (std::uint32_t begin = 0; begin < cells_;) {
            auto const end = static_cast<std::uint32_t>(
                std::min<std::uint64_t>(cells_, begin + kChunkBytes / element));
            std::byte* out = DKV_TRY(chunk.next((end - begin) * element));
            for (; begin < end; ++begin, out += element) {
                auto const row = row_of(head, begin);
                DKV_ASSERT(row < view.tokens);
                std::memcpy(out, view.row(0, row) + dim * view.dim_stride * element, element);
            }
        }
        return {};
    }

    RowsToWrite const& rows_;
    std::uint32_t cells_;
    std::vector<RowsView> keys_;
    std::vector<RowsView> values_;
};

Bytes part_head(LlamaPlan const& plan, PartPlan const& part, bool transposed) {
    Bytes head;
    put(head, part.type->number);
    if (transposed) {
        put(head, part.type->block_bytes);
        put(head, static_cast<std::uint32_t>(plan.row_elements()));
    } else {
        put(head, part.row_bytes);
    }
    DKV_ASSERT(head.size() == kPartHeadBytes);
    return head;
}

Result<void> write_layer(NewFile& file,
                         LlamaPlan const& plan,
                         std::uint32_t layer,
                         LayerRows const& rows,
                         KeyReorder& reorder) {
    DKV_TRY(file.rewrite(plan.keys_offset(layer), part_head(plan, plan.keys, false)));
    PendingBytes keys(file, plan.keys_offset(layer) + kPartHeadBytes);
    DKV_TRY(rows.write_keys(keys, reorder));
    DKV_TRY(keys.flush());
    DKV_TRY(file.rewrite(plan.values_offset(layer), part_head(plan, plan.values, plan.transposed)));
    PendingBytes values(file, plan.values_offset(layer) + kPartHeadBytes);
    DKV_TRY(rows.write_values(values, plan.transposed));
    return values.flush();
}

Result<void> write_cells(NewFile& file,
                         LlamaPlan const& plan,
                         std::vector<std::int32_t> positions,
                         std::uint32_t prompt_tokens) {
    // llama.cpp goes on at the last cell's position + 1.
    positions.back() = static_cast<std::int32_t>(prompt_tokens) - 1;
    auto const wrong = std::ranges::adjacent_find(positions, std::ranges::greater_equal{});
    if (wrong != positions.end())
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("positions do not ascend to {}: {} is followed by {}",
                                 positions.back(), wrong[0], wrong[1])};
    Bytes cells;
    for (std::int32_t const position : positions) {
        put(cells, position);
        put(cells, plan.cell_tail);
    }
    return file.rewrite(plan.cells_offset(), cells);
}

}  // namespace

bool is_llama_cache(SavedCache const* cache) noexcept {
    return dynamic_cast<LlamaCache const*>(cache) != nullptr;
}

Result<std::uint64_t> write_llama(Backend& /*backend*/, WriteRequest const& request) {
    auto const plan = DKV_TRY(plan_of(request));
    auto file = DKV_TRY(NewFile::create(request.path, request.like, request.links));
    DKV_TRY(file.append(plan.head));
    DKV_TRY(file.append(std::as_bytes(std::span(&plan.cells, 1))));
    DKV_TRY(file.extend(plan.data_offset() - file.size()));
    Bytes data_head;
    put(data_head, std::uint32_t{plan.transposed});
    put(data_head, plan.geometry.layers);
    put(data_head, plan.rotation);
    DKV_TRY(file.append(data_head));
    // All keys come before all values, but a layer is asked for once.
    DKV_TRY(file.extend(plan.end_offset() - file.size()));
    DKV_TRY(file.append(plan.tail));

    auto const* const source = dynamic_cast<LlamaCache const*>(request.source);
    auto const& geometry = plan.geometry;
    auto reorder =
        source != nullptr
            ? KeyReorder()
            : DKV_TRY(KeyReorder::create(request.facts.rope, DKV_TRY(written_key_order(request)),
                                         geometry.head_dim, geometry.dtype));
    std::vector<std::int32_t> positions(plan.cells, -1);
    for (std::uint32_t layer = 0; layer < plan.geometry.layers; ++layer) {
        auto const rows = DKV_TRY(request.layer(layer));
        SavedLayer const moved = source != nullptr ? source->stored(layer) : rows.source;
        LayerRows const heads(rows, moved, plan);
        DKV_TRY(write_layer(file, plan, layer, heads, reorder));
        heads.raise(positions);
    }
    DKV_TRY(write_cells(file, plan, std::move(positions), request.facts.prompt_tokens));
    DKV_ASSERT(file.size() == plan.file_bytes());
    if (request.before_commit) DKV_TRY(request.before_commit());
    DKV_TRY(file.commit());
    return plan.file_bytes();
}

Result<std::uint64_t> llama_bytes(WriteRequest const& request) {
    return DKV_TRY(plan_of(request)).file_bytes();
}

}  // namespace dkv
