#include "protocol/sdk/llama/state_rows.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "protocol/base/elements.h"
#include "protocol/container/ggml_types.h"

namespace dkv::llama {
namespace {

// Before the elements of a layer's K or V: its type, and the size of a row in one form or another.
constexpr std::uint64_t kPartHeadBytes = 12;

dkv_rows rows_at(StateRows const& rows, dkv_arena* arena, std::uint64_t offset) {
    Geometry const& geometry = rows.geometry;
    return {arena,
            offset,
            static_cast<dkv_dtype>(geometry.dtype),
            geometry.kv_heads,
            rows.tokens(),
            geometry.head_dim,
            geometry.head_dim,
            std::uint64_t{geometry.kv_heads} * geometry.head_dim,
            1};
}

/// Appends bytes to a buffer.
class Writer {
public:
    explicit Writer(std::uint64_t bytes_max) { out_.reserve(bytes_max); }

    void put(std::span<std::byte const> bytes) {
        out_.insert(out_.end(), bytes.begin(), bytes.end());
    }
    template <class T>
    void put_number(T value) {
        put(std::as_bytes(std::span(&value, 1)));
    }
    std::byte* put_zeros(std::uint64_t bytes) {
        out_.resize(out_.size() + bytes);
        return out_.data() + out_.size() - bytes;
    }
    std::vector<std::byte> take() && { return std::move(out_); }

private:
    std::vector<std::byte> out_;
};

/// One layer's K or V: [cells][kv_heads][head_dim], or transposed [kv_heads][head_dim][cells].
struct Part {
    LlamaRows const& rows;
    std::uint64_t offset;
    bool transposed;
};

void place_rows(StateRows const& state,
                std::byte const* source,
                Part const& part,
                std::span<std::int32_t const> kept,
                std::byte* target) {
    std::uint32_t const heads = state.geometry.kv_heads;
    std::uint32_t const dims = state.geometry.head_dim;
    std::size_t const cells = kept.size() / heads;
    std::uint64_t const row_bytes = part.rows.type->bytes(dims);
    std::uint64_t const element = part.rows.type->block_bytes;
    for (std::uint32_t head = 0; head < heads; ++head)
        for (std::size_t cell = 0; cell < cells; ++cell) {
            auto const from = static_cast<std::uint64_t>(kept[head * cells + cell]);
            if (!part.transposed) {
                std::memcpy(target + (cell * heads + head) * row_bytes,
                            source + (from * heads + head) * row_bytes, row_bytes);
                continue;
            }
            for (std::uint64_t dim = std::uint64_t{head} * dims; dim < (head + 1ULL) * dims; ++dim)
                std::memcpy(target + (dim * cells + cell) * element,
                            source + (dim * state.tokens() + from) * element, element);
        }
}

/// Cells in the order of their positions.
std::vector<std::uint32_t> by_position(LlamaLayout const& layout) {
    std::vector<std::uint32_t> cells(layout.positions.size());
    std::iota(cells.begin(), cells.end(), 0U);
    std::ranges::sort(cells, {}, [&](auto cell) { return layout.positions[cell]; });
    return cells;
}

/// Runs of one item of `bytes` for each cell: `order`'s cells, in each run.
std::vector<std::byte> in_order(std::byte const* source,
                                std::uint64_t bytes,
                                std::uint64_t runs,
                                std::span<std::uint32_t const> order) {
    std::vector<std::byte> out(order.size() * runs * bytes);
    std::byte* target = out.data();
    for (std::uint64_t run = 0; run < runs; ++run)
        for (std::size_t first = 0, end = 0; first < order.size(); first = end) {
            // Orders are a few stretches of cells that follow one another.
            for (end = first + 1; end < order.size() && order[end] == order[end - 1] + 1;)
                ++end;
            std::memcpy(target, source + (run * order.size() + order[first]) * bytes,
                        (end - first) * bytes);
            target += (end - first) * bytes;
        }
    return out;
}

/// The bytes of one layer's K or V, cell after cell in that order.
std::vector<std::byte> ordered_rows(std::byte const* state,
                                    LlamaLayout const& layout,
                                    Part const& part,
                                    std::span<std::uint32_t const> order) {
    std::uint64_t const runs = part.transposed ? layout.row_elements : 1;
    return in_order(state + part.offset, part.rows.type->bytes(layout.row_elements) / runs, runs,
                    order);
}

std::vector<Part> parts_of(LlamaLayout const& layout) {
    std::vector<Part> parts;
    for (auto const offset : layout.keys)
        parts.push_back({layout.key_rows, offset, false});
    for (auto const offset : layout.values)
        parts.push_back({layout.value_rows, offset, layout.transposed});
    return parts;
}

Result<void> order_cells(std::byte* state, LlamaLayout& layout) {
    auto const order = by_position(layout);
    for (std::size_t at = 0; at < order.size(); ++at)
        if (layout.positions[order[at]] != static_cast<std::int32_t>(at))
            return unsupported("the sequence has position " +
                               std::to_string(layout.positions[order[at]]) + " where " +
                               std::to_string(at) +
                               " was expected: the context was shifted, or a part was removed");
    if (std::ranges::is_sorted(layout.positions)) return {};
    std::ranges::copy(in_order(state + layout.cells_offset(), layout.cell_bytes, 1, order),
                      state + layout.cells_offset());
    for (Part const& part : parts_of(layout))
        std::ranges::copy(ordered_rows(state, layout, part, order), state + part.offset);
    std::ranges::sort(layout.positions);
    return {};
}

bool same_cells(std::span<std::byte const> one,
                LlamaLayout const& a,
                std::span<std::byte const> other,
                LlamaLayout const& b) {
    auto const order_a = by_position(a);
    auto const order_b = by_position(b);
    auto const position = [](LlamaLayout const& of) {
        return [&](std::uint32_t cell) { return of.positions[cell]; };
    };
    if (a.keys != b.keys || a.values != b.values || a.transposed != b.transposed ||
        a.row_elements != b.row_elements || a.key_rows.type != b.key_rows.type ||
        a.value_rows.type != b.value_rows.type || a.says_rotation != b.says_rotation ||
        a.key_rows.rotation != b.key_rows.rotation ||
        a.value_rows.rotation != b.value_rows.rotation ||
        !std::ranges::equal(order_a, order_b, {}, position(a), position(b)))
        return false;
    auto const parts_a = parts_of(a);
    auto const parts_b = parts_of(b);
    for (std::size_t part = 0; part < parts_a.size(); ++part)
        if (ordered_rows(one.data(), a, parts_a[part], order_a) !=
            ordered_rows(other.data(), b, parts_b[part], order_b))
            return false;
    return true;
}

Result<void> check_quantised(LlamaLayout const& layout, ModelShape const& shape) {
    auto const types = "K is " + std::string(layout.key_rows.type->name) + " and V is " +
                       std::string(layout.value_rows.type->name);
    if (!layout.says_rotation)
        return unsupported(types +
                           ", and this llama.cpp does not say how they are rotated: set type_k and "
                           "type_v to f16");
    if (layout.transposed)
        return unsupported(types + ", and V is transposed: switch flash attention on");
    for (LlamaRows const* const rows : {&layout.key_rows, &layout.value_rows})
        if (shape.head_dim % rows->type->block_elements != 0 ||
            (rows->rotation != 0 && shape.head_dim % rows->rotation != 0))
            return unsupported("a head of " + std::to_string(shape.head_dim) +
                               " elements is not whole blocks of " + std::string(rows->type->name));
    return {};
}

Result<void> check_rows(LlamaLayout const& layout, ModelShape const& shape) {
    if (!layout.is_plain()) DKV_TRY(check_quantised(layout, shape));
    if (auto const layers = layout.keys.size() + layout.sliding.layers; layers != shape.layers)
        return unsupported("the state has " + std::to_string(layers) + " layers, the model " +
                           std::to_string(shape.layers));
    if (layout.row_elements != std::uint64_t{shape.kv_heads} * shape.head_dim)
        return unsupported("a row has " + std::to_string(layout.row_elements) +
                           " elements, the model " + std::to_string(shape.kv_heads) +
                           " KV heads of " + std::to_string(shape.head_dim));
    return {};
}

}  // namespace

std::uint64_t dense_bytes(ModelShape const& shape, std::uint32_t tokens) noexcept {
    return Geometry{shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim, Dtype::F16}
        .cache_bytes(tokens);
}

void StateRows::lay_dense(std::byte* base) const {
    std::vector<float> row(geometry.head_dim);
    std::byte* target = base + dense_offset;
    auto const lay = [&](LlamaRows const& rows, std::byte const* source) {
        for (std::uint64_t at = 0; at < std::uint64_t{tokens()} * geometry.kv_heads; ++at) {
            dequantise(*rows.type, source + at * rows.type->bytes(geometry.head_dim), row);
            if (rows.rotation != 0) turn_by_hadamard(row, rows.rotation);
            for (float const value : row) {
                store_f32(target, geometry.dtype, value);
                target += bytes_of(geometry.dtype);
            }
        }
    };
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        lay(layout.key_rows, base + layout.keys[layer]);
        lay(layout.value_rows, base + layout.values[layer]);
    }
}

dkv_rows StateRows::keys(dkv_arena* arena, std::uint32_t layer) const {
    std::uint64_t const part_bytes = tokens() * geometry.token_bytes() / 2;
    return rows_at(*this, arena,
                   is_quantised() ? dense_offset + layer * (2 * part_bytes) : layout.keys[layer]);
}

dkv_rows StateRows::values(dkv_arena* arena, std::uint32_t layer) const {
    std::uint64_t const part_bytes = tokens() * geometry.token_bytes() / 2;
    auto rows = rows_at(*this, arena,
                        is_quantised() ? dense_offset + layer * (2 * part_bytes) + part_bytes
                                       : layout.values[layer]);
    if (layout.transposed) {
        rows.head_stride = std::uint64_t{geometry.head_dim} * tokens();
        rows.token_stride = 1;
        rows.dim_stride = tokens();
    }
    return rows;
}

Result<StateRows> read_state(std::span<std::byte> state, ModelShape const& shape) {
    StateRows rows;
    rows.layout = DKV_TRY(parse_llama(state, false));
    DKV_TRY(check_rows(rows.layout, shape));
    DKV_TRY(order_cells(state.data(), rows.layout));
    rows.geometry = {
        .layers = static_cast<std::uint32_t>(rows.layout.keys.size()),
        .q_heads = shape.q_heads,
        .kv_heads = shape.kv_heads,
        .head_dim = shape.head_dim,
        .dtype = rows.layout.is_plain() ? *rows.layout.key_rows.type->dtype : Dtype::F16};
    rows.dense_offset = (state.size() + 63) / 64 * 64;
    DKV_TRY(check(rows.geometry));
    return rows;
}

std::vector<std::byte> smaller_state(std::span<std::byte const> whole,
                                     StateRows const& rows,
                                     std::span<std::int32_t const> kept,
                                     std::uint32_t cells) {
    LlamaLayout const& layout = rows.layout;
    std::size_t const layer_rows = std::size_t{cells} * rows.geometry.kv_heads;
    Writer out(whole.size() / rows.tokens() * (cells + 1ULL));
    out.put(whole.first(layout.count_offset));
    out.put_number(cells);
    for (std::int32_t const position : kept.first(cells)) {
        out.put_number(position);
        out.put(whole.subspan(layout.cells_offset() + sizeof position,
                              layout.cell_bytes - sizeof position));
    }
    // The flag for transposed V, the number of layers, what newer builds say of rotations.
    auto const data_offset = layout.cells_offset() + rows.tokens() * layout.cell_bytes;
    out.put(whole.subspan(data_offset, layout.keys[0] - kPartHeadBytes - data_offset));
    auto const put_part = [&](Part const& part, std::size_t layer) {
        out.put(whole.subspan(part.offset - kPartHeadBytes, kPartHeadBytes));
        place_rows(rows, whole.data() + part.offset, part,
                   kept.subspan(layer * layer_rows, layer_rows),
                   out.put_zeros(cells * part.rows.type->bytes(layout.row_elements)));
    };
    for (std::size_t layer = 0; layer < layout.keys.size(); ++layer)
        put_part({layout.key_rows, layout.keys[layer], false}, layer);
    for (std::size_t layer = 0; layer < layout.values.size(); ++layer)
        put_part({layout.value_rows, layout.values[layer], layout.transposed}, layer);
    out.put(whole.subspan(layout.end_offset));
    return std::move(out).take();
}

bool same_rows(std::span<std::byte const> one, std::span<std::byte const> other) {
    if (std::ranges::equal(one, other)) return true;
    auto const mine = parse_llama(one, false);
    auto const theirs = parse_llama(other, false);
    if (one.size() != other.size() || !mine || !theirs) return false;
    LlamaLayout const& a = mine.value();
    LlamaLayout const& b = theirs.value();
    if (!same_cells(one, a, other, b) || a.sliding.bytes != b.sliding.bytes) return false;
    auto const behind = [](std::span<std::byte const> state, LlamaLayout const& layout) {
        return state.first(state.size() - layout.sliding.bytes).subspan(layout.end_offset);
    };
    if (!std::ranges::equal(behind(one, a), behind(other, b))) return false;
    if (a.sliding.bytes == 0) return true;
    auto const sliding = one.last(a.sliding.bytes);
    auto const other_sliding = other.last(b.sliding.bytes);
    auto const sliding_a = parse_llama(sliding, true);
    auto const sliding_b = parse_llama(other_sliding, true);
    return sliding_a && sliding_b &&
           same_cells(sliding, sliding_a.value(), other_sliding, sliding_b.value());
}

}  // namespace dkv::llama
