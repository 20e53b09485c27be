#include "protocol/sdk/llama/state_rows.h"

#include <cstring>
#include <string>

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

/// Appends bytes to a buffer whose size is known.
class Writer {
public:
    explicit Writer(std::uint64_t bytes) { out_.reserve(bytes); }

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

/// [cells][kv_heads][head_dim], or transposed [kv_heads][head_dim][cells].
void place_rows(Geometry const& geometry,
                std::byte const* source,
                std::span<std::uint64_t const> head_offset,
                std::uint32_t cells,
                bool transposed,
                std::byte* target) {
    std::uint64_t const row_bytes = geometry.row_bytes();
    std::uint64_t const element = bytes_of(geometry.dtype);
    for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
        for (std::uint32_t cell = 0; cell < cells; ++cell) {
            std::byte const* const row = source + head_offset[head] + cell * row_bytes;
            if (!transposed) {
                std::memcpy(target + (std::uint64_t{cell} * geometry.kv_heads + head) * row_bytes,
                            row, row_bytes);
                continue;
            }
            std::byte* at =
                target + (std::uint64_t{head} * geometry.head_dim * cells + cell) * element;
            for (std::uint32_t dim = 0; dim < geometry.head_dim; ++dim, at += cells * element)
                std::memcpy(at, row + dim * element, element);
        }
}

Result<void> check_rows(LlamaLayout const& layout, ModelShape const& shape) {
    if (!layout.is_plain())
        return unsupported("K is " + std::string(layout.key_rows.type->name) + " and V is " +
                           std::string(layout.value_rows.type->name) +
                           ": live compression takes f16, bf16 or f32 in both; set type_k and "
                           "type_v");
    if (layout.keys.size() != shape.layers)
        return unsupported("the state has " + std::to_string(layout.keys.size()) +
                           " layers, the model " + std::to_string(shape.layers));
    if (layout.row_elements != std::uint64_t{shape.kv_heads} * shape.head_dim)
        return unsupported("a row has " + std::to_string(layout.row_elements) +
                           " elements, the model " + std::to_string(shape.kv_heads) +
                           " KV heads of " + std::to_string(shape.head_dim));
    for (std::size_t cell = 0; cell < layout.positions.size(); ++cell)
        if (layout.positions[cell] != static_cast<std::int32_t>(cell))
            return unsupported("cell " + std::to_string(cell) + " is at position " +
                               std::to_string(layout.positions[cell]) +
                               ": the context was shifted, or its cells were reused");
    return {};
}

}  // namespace

dkv_rows StateRows::keys(dkv_arena* arena, std::uint32_t layer) const {
    return rows_at(*this, arena, layout.keys[layer]);
}

dkv_rows StateRows::values(dkv_arena* arena, std::uint32_t layer) const {
    auto rows = rows_at(*this, arena, layout.values[layer]);
    if (layout.transposed) {
        rows.head_stride = std::uint64_t{geometry.head_dim} * tokens();
        rows.token_stride = 1;
        rows.dim_stride = tokens();
    }
    return rows;
}

Result<StateRows> read_state(std::span<std::byte const> state, ModelShape const& shape) {
    StateRows rows;
    rows.layout = DKV_TRY(parse_llama(state, false));
    DKV_TRY(check_rows(rows.layout, shape));
    rows.geometry = {.layers = shape.layers,
                     .q_heads = shape.q_heads,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .dtype = *rows.layout.key_rows.type->dtype};
    DKV_TRY(check(rows.geometry));
    return rows;
}

std::uint64_t state_bytes(StateRows const& rows, std::uint64_t whole_bytes, std::uint32_t cells) {
    std::uint64_t const cell_bytes =
        rows.layout.cell_bytes + rows.geometry.layers * rows.geometry.token_bytes();
    return whole_bytes - (rows.tokens() - cells) * cell_bytes;
}

std::vector<std::byte> smaller_state(std::span<std::byte const> whole,
                                     StateRows const& rows,
                                     std::span<std::int32_t const> positions,
                                     std::span<KeptLayer const> layers) {
    LlamaLayout const& layout = rows.layout;
    auto const cells = static_cast<std::uint32_t>(positions.size());
    Writer out(state_bytes(rows, whole.size(), cells));
    out.put(whole.first(layout.count_offset));
    out.put_number(cells);
    for (std::int32_t const position : positions) {
        out.put_number(position);
        out.put(whole.subspan(layout.cells_offset() + sizeof position,
                              layout.cell_bytes - sizeof position));
    }
    // The flag for transposed V, the number of layers, what newer builds say of rotations.
    auto const data_offset = layout.cells_offset() + rows.tokens() * layout.cell_bytes;
    out.put(whole.subspan(data_offset, layout.keys[0] - kPartHeadBytes - data_offset));
    std::uint64_t const part_bytes = cells * rows.geometry.token_bytes() / 2;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        out.put(whole.subspan(layout.keys[layer] - kPartHeadBytes, kPartHeadBytes));
        place_rows(rows.geometry, layers[layer].keys, layers[layer].head_offset, cells, false,
                   out.put_zeros(part_bytes));
    }
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        out.put(whole.subspan(layout.values[layer] - kPartHeadBytes, kPartHeadBytes));
        place_rows(rows.geometry, layers[layer].values, layers[layer].head_offset, cells,
                   layout.transposed, out.put_zeros(part_bytes));
    }
    out.put(whole.subspan(layout.end_offset));
    return std::move(out).take();
}

}  // namespace dkv::llama
