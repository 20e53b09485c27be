// What comes before and after the tiles: queries in, one number per token and head out.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/elements.h"
#include "kernels/cpu/score_tiles.h"

namespace dkv::cpu {

float query_scale(float scale, std::size_t head_dim, float softcap) noexcept {
    float const wanted = scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
    return wanted * (softcap == 0 ? kLog2E : 1.0f);
}

void pack_queries(RowPlan const& plan,
                  RowsView const& queries,
                  std::size_t kv_head,
                  std::uint32_t first,
                  float scale,
                  float* out) {
    std::size_t const head_dim = queries.head_dim;
    std::size_t const element_bytes = bytes_of(queries.dtype);
    for (Panel const& panel : plan.panels) {
        float* const packed = out + panel.row * head_dim;
        std::fill_n(packed, panel.rows * head_dim, 0.0f);
        std::size_t const rows = std::min(panel.rows, plan.rows - panel.row);
        for (std::size_t i = 0; i < rows; ++i) {
            std::size_t const row = panel.row + i;
            std::byte const* const query =
                queries.row(static_cast<std::uint32_t>(kv_head * plan.group + row / plan.window),
                            first + static_cast<std::uint32_t>(row % plan.window));
            for (std::size_t dim = 0; dim < head_dim; ++dim)
                packed[dim * panel.rows + i] =
                    scale *
                    load_f32(query + dim * queries.dim_stride * element_bytes, queries.dtype);
        }
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
    for (std::size_t i = 0; i < count; ++i) {
        float total = 0;
        float most = 0;
        for (std::size_t head = 0; head < group; ++head) {
            total += sums[head * stride + i];
            most = std::max(most, sums[head * stride + i]);
        }
        out[i] = reduce == GroupReduce::Max   ? most
                 : reduce == GroupReduce::Sum ? total
                                              : total / static_cast<float>(group);
    }
}

}  // namespace dkv::cpu
