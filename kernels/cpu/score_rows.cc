// What comes before and after the tiles: queries in, one number per token and head out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/score_tiles.h"
#include "kernels/host.h"

namespace dkv::cpu {
namespace {

// A panel's queries are met again for every block of keys, from half of a small L1.
constexpr std::size_t kPanelBytes = 16 << 10;
constexpr std::size_t kPanelVecsMin = 2;

}  // namespace

float query_scale(float scale, std::size_t head_dim, float softcap) noexcept {
    float const wanted = scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
    return wanted * (softcap == 0 ? kLog2E : 1.0f);
}

namespace {

/// packed[step * stride] = the query's words.
void pack_row(RowPlan const& plan,
              RowsView const& view,
              std::byte const* query,
              float* packed,
              std::size_t stride) {
    std::size_t const element_bytes = bytes_of(view.dtype);
    std::size_t const apart = view.dim_stride * element_bytes;
    if (!plan.pairs) {
        for (std::size_t dim = 0; dim < view.head_dim; ++dim)
            packed[dim * stride] = load_f32(query + dim * apart, view.dtype);
        return;
    }
    for (std::size_t dim = 0; dim < view.head_dim; ++dim)
        std::memcpy(
            reinterpret_cast<std::byte*>(packed + dim / 2 * stride) + dim % 2 * element_bytes,
            query + dim * apart, element_bytes);
}

}  // namespace

RowPlan::RowPlan(std::size_t group_heads,
                 std::size_t window_tokens,
                 RowsView const& keys,
                 Simd simd)
    : group(group_heads),
      window(window_tokens),
      rows(group * window),
      rows_padded(round_up(rows, simd.lanes)),
      pairs(keys.dtype == Dtype::Bf16 && simd.bf16_pairs),
      steps(pairs ? (std::size_t{keys.head_dim} + 1) / 2 : keys.head_dim) {
    std::size_t const vec_bytes = steps * simd.lanes * sizeof(float);
    std::size_t const wide =
        std::clamp(kPanelBytes / vec_bytes, kPanelVecsMin, simd.panel_vecs_max);
    std::size_t const vecs = rows_padded / simd.lanes;
    std::size_t const count = (vecs + wide - 1) / wide;
    for (std::size_t i = 0; i < count; ++i) {  // Panels of nearly equal width.
        std::size_t const begin = vecs * i / count * simd.lanes;
        std::size_t const end = vecs * (i + 1) / count * simd.lanes;
        panels.push_back({begin, end - begin});
        for (std::size_t head = begin / window; head < group && head * window < end; ++head)
            segments.push_back({i, head, std::max(head * window, begin) - begin,
                                std::min((head + 1) * window, end) - begin});
    }
}

void pack_queries(RowPlan const& plan,
                  RowsView const& queries,
                  std::size_t kv_head,
                  std::uint32_t first,
                  float* out) {
    for (Panel const& panel : plan.panels) {
        float* const packed = out + panel.row * plan.steps;
        std::fill_n(packed, panel.rows * plan.steps, 0.0f);
        std::size_t const rows = std::min(panel.rows, plan.rows - panel.row);
        for (std::size_t i = 0; i < rows; ++i) {
            std::size_t const row = panel.row + i;
            pack_row(
                plan, queries,
                queries.row(static_cast<std::uint32_t>(kv_head * plan.group + row / plan.window),
                            first + static_cast<std::uint32_t>(row % plan.window)),
                packed + i, panel.rows);
        }
    }
}

void join_sinks(RowPlan const& plan, std::span<float const> sinks, float* largest, float* weight) {
    constexpr float most = std::numeric_limits<float>::max();
    for (std::size_t row = 0; row < plan.rows; ++row) {
        float const sink = std::clamp(sinks[row / plan.window] * kLog2E, -most, most);
        float const top = std::max(largest[row], sink);
        float const sum = std::exp2(largest[row] - top) / weight[row] + std::exp2(sink - top);
        largest[row] = top;
        weight[row] = 1 / sum;
    }
}

void reduce_group(GroupReduce reduce,
                  std::size_t group,
                  float const* sums,
                  std::size_t stride,
                  std::size_t count,
                  float* out,
                  std::size_t out_stride) {
    if (reduce == GroupReduce::None) {
        for (std::size_t head = 0; head < group; ++head)
            std::copy_n(sums + head * stride, count, out + head * out_stride);
        return;
    }
    std::copy_n(sums, count, out);
    for (std::size_t head = 1; head < group; ++head) {
        float const* const row = sums + head * stride;
        if (reduce == GroupReduce::Max)
            for (std::size_t i = 0; i < count; ++i)
                out[i] = std::max(out[i], row[i]);
        else
            for (std::size_t i = 0; i < count; ++i)
                out[i] += row[i];
    }
    if (reduce == GroupReduce::Mean)
        for (std::size_t i = 0; i < count; ++i)
            out[i] /= static_cast<float>(group);
}

}  // namespace dkv::cpu
