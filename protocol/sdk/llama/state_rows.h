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
    std::uint32_t layers = 0;
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
};

struct StateRows {
    LlamaLayout layout;
    Geometry geometry;

    std::uint32_t tokens() const noexcept {
        return static_cast<std::uint32_t>(layout.positions.size());
    }
    /// Where they are in an arena that begins with the state.
    dkv_rows keys(dkv_arena* arena, std::uint32_t layer) const;
    dkv_rows values(dkv_arena* arena, std::uint32_t layer) const;
};

/// Errors: those of parse_llama(); Unsupported, by name: rows that are quantised or rotated, K and
/// V of two types, cells that are not the positions 0, 1, 2, … in order, and a shape that is not
/// the model's.
Result<StateRows> read_state(std::span<std::byte const> state, ModelShape const& shape);

/// The kept rows of a layer: those of head h begin head_offset[h] bytes after `keys` and `values`.
struct KeptLayer {
    std::byte const* keys = nullptr;
    std::byte const* values = nullptr;
    std::span<std::uint64_t const> head_offset;
};

/// The bytes of state() with `cells` cells.
std::uint64_t state_bytes(StateRows const& rows, std::uint64_t whole_bytes, std::uint32_t cells);

/// `whole` with one cell for each of `positions`, ascending, and the rows of `layers` in them.
std::vector<std::byte> smaller_state(std::span<std::byte const> whole,
                                     StateRows const& rows,
                                     std::span<std::int32_t const> positions,
                                     std::span<KeptLayer const> layers);

}  // namespace dkv::llama
