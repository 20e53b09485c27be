// The vector arithmetic of `score`, compiled for several instruction sets and chosen at run time.
//
// One KV head at a time. Its group's queries are the rows of a matrix, rows = group * window, row
// g * window + w being query w of the group's head g; the keys are met in tiles of kTileKeys. Rows
// lie along the vector lanes, so that statistics per row need no sum across lanes, and a key's
// element is one broadcast. So is a pair of bf16 elements where the machine multiplies those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"
#include "protocol/base/score_options.h"

namespace dkv::cpu {

struct Simd {
    char const* name;            ///< "avx512"
    std::size_t lanes;           ///< f32 in a vector.
    std::size_t panel_vecs_max;  ///< Vectors of rows that a block of accumulators spans at most.
    bool bf16_pairs;             ///< Multiplies pairs of bf16 and adds them to f32.
};

/// What this machine runs.
Simd simd();

inline constexpr float kLog2E = 1.44269504f;
inline constexpr std::size_t kTileKeys = 48;  // Whole blocks, whichever their height; fits in L1.
inline constexpr std::size_t kPanelVecsMax = 4;

/// Some rows, a whole number of vectors, for all of which a tile's logits are in L1 together.
struct Panel {
    std::size_t row;   ///< The first one.
    std::size_t rows;  ///< A multiple of the lanes.
};

/// The part of a panel that belongs to one query head.
struct Segment {
    std::size_t panel;
    std::size_t head;   ///< In the group.
    std::size_t begin;  ///< Rows, from the panel's first one.
    std::size_t end;
};

/// Which rows go together, and how elements are met; the same for every KV head.
struct RowPlan {
    /// `window_tokens` queries of each of `group_heads`, against keys such as `keys`.
    RowPlan(std::size_t group_heads, std::size_t window_tokens, RowsView const& keys, Simd simd);

    std::size_t query_floats() const noexcept { return rows_padded * steps; }

    std::size_t group;
    std::size_t window;
    std::size_t rows;         ///< group * window
    std::size_t rows_padded;  ///< Up to whole vectors; the rest are queries of zeros.
    bool pairs;               ///< Two bf16 at a step, else one f32.
    std::size_t steps;        ///< Words of 32 bits that hold a row's head_dim elements.
    std::vector<Panel> panels;
    std::vector<Segment> segments;
};

/// A stretch of one KV head's keys: what a worker takes at a time.
struct KeyRange {
    RowsView const* keys;
    std::uint32_t head;
    std::uint32_t begin;  ///< Tokens.
    std::uint32_t end;
};

/// How a product of query and key becomes a logit to base 2.
struct LogitForm {
    float scale;    ///< As query_scale() gives it.
    float softcap;  ///< 0: none.
};

/// A worker's memory, aligned to 64 bytes.
struct TileMemory {
    float* keys;    ///< [kTileKeys, padded_dim(head_dim)], for keys that cannot be met in place.
    float* logits;  ///< [kTileKeys, kPanelVecsMax * lanes]
};

/// What the statistics of a range leave for its sums, aligned to 64 bytes.
struct Kept {
    float* powers;  ///< Per tile, panel after panel [kTileKeys, rows]: 2^(logit - top). Or null.
    float* tops;    ///< [tiles, rows_padded]
};

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) noexcept {
    return (value + multiple - 1) / multiple * multiple;
}

std::size_t padded_dim(std::size_t head_dim);
std::size_t tile_floats(std::size_t head_dim);  ///< Both parts of TileMemory.
TileMemory tile_memory(float* memory, std::size_t head_dim);

/// What a product is multiplied by: `scale`, or 1/sqrt(head_dim) when that is 0, and kLog2E besides
/// unless there is a soft cap.
float query_scale(float scale, std::size_t head_dim, float softcap) noexcept;

/// The queries of one KV head from token `first` on, panel after panel [steps, rows]; zeros in the
/// rows that pad. `out` has plan.query_floats().
void pack_queries(RowPlan const& plan,
                  RowsView const& queries,
                  std::size_t kv_head,
                  std::uint32_t first,
                  float* out);

/// For each row, over a range's tokens: the largest logit, and Σ 2^(logit - largest). Causal
/// inside the window, which begins at token `prefix`. Fills `kept` if it has memory.
void range_statistics(RowPlan const& plan,
                      float const* queries,
                      KeyRange const& range,
                      std::uint32_t prefix,
                      LogitForm form,
                      TileMemory const& memory,
                      float* largest,
                      float* sum,
                      Kept const& kept);

/// Joins the statistics [ranges, 2, rows_padded] of one KV head in their order: the largest logit,
/// and 1 / Σ 2^(logit - largest).
void join_statistics(RowPlan const& plan,
                     float const* statistics,
                     std::size_t ranges,
                     float* largest,
                     float* weight);

/// Adds to each row's softmax, as join_statistics() gives it, the
/// sink of its head. `sinks` [group], to base e.
void join_sinks(RowPlan const& plan, std::span<float const> sinks, float* largest, float* weight);

/// Adds to sums[g, token - range.begin]: Σ of weight * 2^(logit - largest) over head g's rows that
/// see the token. `sums` is [group, stride]. `peaks` [stride], or null: is raised to the largest of
/// them over all heads.
void range_sums(RowPlan const& plan,
                float const* queries,
                KeyRange const& range,
                std::uint32_t prefix,
                LogitForm form,
                float const* largest,
                float const* weight,
                TileMemory const& memory,
                float* sums,
                std::size_t stride,
                float* peaks = nullptr);

/// The same of the range's first `tokens`, from what was kept.
void kept_sums(RowPlan const& plan,
               Kept const& kept,
               std::size_t tokens,
               float const* largest,
               float const* weight,
               float* sums,
               std::size_t stride,
               float* peaks = nullptr);

/// One row of `count` numbers of `sums` [group, stride], or each of them with None, to `out` in
/// rows that are `out_stride` apart.
void reduce_group(GroupReduce reduce,
                  std::size_t group,
                  float const* sums,
                  std::size_t stride,
                  std::size_t count,
                  float* out,
                  std::size_t out_stride);

}  // namespace dkv::cpu
