// A sequence's state as llama.cpp gives it: which rows it has, and the same state with fewer cells.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/geometry.h"
#include "protocol/container/llama_layout.h"
#include "protocol/sdk/dkv.h"

namespace dkv::llama {

/// What the model says of itself.
struct ModelShape {
    std::uint32_t layers = 0;  ///< Those with a sliding window, too.
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
};

struct StateRows {
    LlamaLayout layout;
    /// Of the full layers. As rows are scored: f16 where they are quantised.
    Geometry geometry;
    std::uint64_t dense_offset = 0;  ///< In the arena; of quantised rows only.

    std::uint32_t tokens() const noexcept {
        return static_cast<std::uint32_t>(layout.positions.size());
    }
    bool is_quantised() const noexcept { return !layout.is_plain(); }
    /// Quantised rows as f16, unrotated, at dense_offset of an arena that begins with the state.
    void lay_dense(std::byte* base) const;
    /// Where they are in that arena.
    dkv_rows keys(dkv_arena* arena, std::uint32_t layer) const;
    dkv_rows values(dkv_arena* arena, std::uint32_t layer) const;
};

/// Bytes of an arena behind the state that quantised rows may take.
std::uint64_t dense_bytes(ModelShape const& shape, std::uint32_t tokens) noexcept;

/// Puts the full layers' cells in the order of their positions: in a unified KV they lie between
/// those of other sequences, in any order.
///
/// Errors: those of parse_llama(); Unsupported, by name: quantised rows of a build that does not
/// say how they are rotated, a head that is not whole blocks, cells that are not the positions 0,
/// 1, 2, …, and a shape that is not the model's.
Result<StateRows> read_state(std::span<std::byte> state, ModelShape const& shape);

/// `whole` with only `cells` cells, in which each layer and KV head has its rows of `kept` [layers,
/// kv_heads, cells], ascending, as they were stored. The cells' positions are the first head's.
/// Sliding layers stay as they are.
std::vector<std::byte> smaller_state(std::span<std::byte const> whole,
                                     StateRows const& rows,
                                     std::span<std::int32_t const> kept,
                                     std::uint32_t cells);

/// Whether both have the same rows at the same positions; the cells may lie in another order.
bool same_rows(std::span<std::byte const> one, std::span<std::byte const> other);

}  // namespace dkv::llama
