#include "kernels/cpu/score_tiles.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/elements.h"

// Left out: what SSE4 is next to anyway, and vectors without a size, which arrays cannot hold.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score_tiles.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
#include "kernels/cpu/widen-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Blocks of keys × vectors of rows whose accumulators, with a few registers to spare, fill the
// file: 32 registers, or 16.
constexpr bool kManyRegisters = HWY_ARCH_ARM || HWY_TARGET <= HWY_AVX3;
constexpr std::size_t kVecsMax = kManyRegisters ? 4 : 2;
constexpr std::size_t block_keys(std::size_t vecs) {
    if (kManyRegisters) return vecs == 1 ? 16 : vecs == 2 ? 12 : vecs == 3 ? 8 : 6;
    return vecs == 1 ? 12 : 6;
}

Simd target() {
    char const* const name = HWY_TARGET == HWY_AVX3   ? "avx512"
                             : HWY_TARGET == HWY_AVX2 ? "avx2"
                             : HWY_TARGET == HWY_SSE4 ? "sse4"
                             : HWY_TARGET == HWY_NEON ? "neon"
                                                      : hwy::TargetName(HWY_TARGET);
    return {name, kLanes, kVecsMax};
}

/// NaN and the infinities become numbers, so that every sum is one; then the soft cap, if there is
/// one, and with it the change to base 2, which the queries already hold otherwise.
HWY_INLINE Vec finish_logits(Vec logits, float softcap) {
    logits = hn::IfThenElse(hn::IsNaN(logits), hn::Set(kF32, -kLargest), logits);
    logits = hn::Min(hn::Max(logits, hn::Set(kF32, -kLargest)), hn::Set(kF32, kLargest));
    if (softcap == 0) return logits;
    Vec const cap = hn::Set(kF32, softcap);
    return hn::Mul(hn::Set(kF32, softcap * kLog2E), hn::Tanh(kF32, hn::Div(logits, cap)));
}

/// 2^x for x <= 0, and 0 below 2^-126; anything above 0 counts as 0. Half the work of an exp for
/// every argument. Relative error below 2e-7.
HWY_INLINE Vec exp2_of_negative(Vec x) {
    x = hn::Min(hn::Max(x, hn::Set(kF32, -127.0f)), hn::Zero(kF32));
    // Adding 1.5 * 2^23 leaves the nearest integer in the last bits; adding 127 besides makes it an
    // exponent, to be shifted into place. -127 becomes that of zero.
    Vec const shift = hn::Set(kF32, 0x1.8p23f + 127.0f);
    Vec const shifted = hn::Add(x, shift);
    Vec const power =
        hn::BitCast(kF32, hn::ShiftLeft<23>(hn::BitCast(hn::RebindToUnsigned<F32>(), shifted)));
    Vec const rest = hn::Sub(x, hn::Sub(shifted, shift));  // In [-0.5, 0.5], exactly.
    // Minimax for 2^rest.
    Vec sum = hn::Set(kF32, 1.32764597e-3f);
    for (float const coefficient :
         {9.67554189e-3f, 5.55071346e-2f, 0.240221202f, 0.693146944f, 1.0f})
        sum = hn::MulAdd(sum, rest, hn::Set(kF32, coefficient));
    return hn::Mul(sum, power);
}

/// logits[k, rows] = queries · keys[k] for a block of keys, all in registers.
template <std::size_t kVecs>
HWY_INLINE void block_logits(float const* HWY_RESTRICT queries,
                             float const* const* keys,
                             std::size_t head_dim,
                             float softcap,
                             float* HWY_RESTRICT logits) {
    constexpr std::size_t height = block_keys(kVecs);
    Vec sums[height][kVecs];
    for (auto& row : sums)
        for (Vec& sum : row)
            sum = hn::Zero(kF32);
    for (std::size_t dim = 0; dim < head_dim; ++dim, queries += kVecs * kLanes) {
        Vec query[kVecs];
        for (std::size_t v = 0; v < kVecs; ++v)
            query[v] = hn::Load(kF32, queries + v * kLanes);
        for (std::size_t k = 0; k < height; ++k) {
            Vec const key = hn::Set(kF32, keys[k][dim]);
            for (std::size_t v = 0; v < kVecs; ++v)
                sums[k][v] = hn::MulAdd(query[v], key, sums[k][v]);
        }
    }
    for (std::size_t k = 0; k < height; ++k)
        for (std::size_t v = 0; v < kVecs; ++v)
            hn::Store(finish_logits(sums[k][v], softcap), kF32, logits + (k * kVecs + v) * kLanes);
}

/// logits[k, rows] for a panel and a tile; past the last key, up to a whole block, the last key
/// again.
template <std::size_t kVecs>
HWY_NOINLINE void tile_logits(Panel const& panel,
                              float const* const* keys,
                              std::size_t count,
                              std::size_t head_dim,
                              float softcap,
                              float* logits) {
    for (std::size_t k = 0; k < count; k += block_keys(kVecs))
        block_logits<kVecs>(panel.queries, keys + k, head_dim, softcap,
                            logits + k * kVecs * kLanes);
}

void panel_logits(Panel const& panel,
                  float const* const* keys,
                  std::size_t count,
                  std::size_t head_dim,
                  float softcap,
                  float* logits) {
    switch (panel.rows / kLanes) {
        case 1: return tile_logits<1>(panel, keys, count, head_dim, softcap, logits);
        case 2: return tile_logits<2>(panel, keys, count, head_dim, softcap, logits);
#if HWY_ARCH_ARM || HWY_TARGET <= HWY_AVX3
        case 3: return tile_logits<3>(panel, keys, count, head_dim, softcap, logits);
        case 4: return tile_logits<4>(panel, keys, count, head_dim, softcap, logits);
#endif
        default: DKV_ASSERT(false);
    }
}

/// Where each key of the tile lies as dense f32: in the cache itself if it can, else in `memory`.
void tile_keys(KeyRange const& range,
               std::size_t token,
               std::size_t count,
               TileMemory const& memory,
               float const** keys) {
    RowsView const& view = *range.keys;
    std::size_t const padded = round_up(std::size_t{view.head_dim}, kLanes);
    for (std::size_t k = 0; k < kTileKeys; ++k) {
        if (k >= count) {
            keys[k] = keys[count - 1];
            continue;
        }
        std::byte const* const row = view.row(range.head, static_cast<std::uint32_t>(token + k));
        keys[k] = dense_row(row, view, memory.keys + k * padded);
    }
}

/// Takes from each query the tokens that come after it.
void mask_future(RowPlan const& plan,
                 Panel const& panel,
                 std::size_t token,
                 std::size_t count,
                 std::uint32_t prefix,
                 float* logits) {
    for (std::size_t k = 0; k < count; ++k) {
        std::size_t const position = token + k;
        if (position <= prefix) continue;
        std::size_t const rows = std::min(panel.rows, plan.rows - panel.row);
        for (std::size_t row = 0; row < rows; ++row)
            if ((panel.row + row) % plan.window < position - prefix)
                logits[k * panel.rows + row] = -kInfinity;
    }
}

void add_statistics(
    float const* logits, std::size_t count, std::size_t rows, float* largest, float* sum) {
    for (std::size_t row = 0; row < rows; row += kLanes) {
        Vec const before = hn::Load(kF32, largest + row);
        Vec after = before;
        for (std::size_t k = 0; k < count; ++k)
            after = hn::Max(after, hn::Load(kF32, logits + k * rows + row));
        Vec total = hn::Mul(hn::Load(kF32, sum + row), exp2_of_negative(hn::Sub(before, after)));
        for (std::size_t k = 0; k < count; ++k) {
            Vec const logit = hn::Load(kF32, logits + k * rows + row);
            total = hn::Add(total, exp2_of_negative(hn::Sub(logit, after)));
        }
        hn::Store(after, kF32, largest + row);
        hn::Store(total, kF32, sum + row);
    }
}

void range_statistics(RowPlan const& plan,
                      float const* queries,
                      KeyRange const& range,
                      std::uint32_t prefix,
                      float softcap,
                      TileMemory const& memory,
                      float* largest,
                      float* sum) {
    std::fill_n(largest, plan.rows_padded, -kLargest);
    std::fill_n(sum, plan.rows_padded, 0.0f);
    float const* keys[kTileKeys];
    for (std::size_t token = range.begin; token < range.end; token += kTileKeys) {
        std::size_t const count = std::min(kTileKeys, range.end - token);
        tile_keys(range, token, count, memory, keys);
        for (Panel panel : plan.panels) {
            panel.queries = queries + panel.row * range.keys->head_dim;
            panel_logits(panel, keys, count, range.keys->head_dim, softcap, memory.logits);
            mask_future(plan, panel, token, count, prefix, memory.logits);
            add_statistics(memory.logits, count, panel.rows, largest + panel.row, sum + panel.row);
        }
    }
}

void join_statistics(RowPlan const& plan,
                     float const* statistics,
                     std::size_t ranges,
                     float* largest,
                     float* weight) {
    std::size_t const rows = plan.rows_padded;
    for (std::size_t row = 0; row < rows; row += kLanes) {
        Vec top = hn::Set(kF32, -kLargest);
        for (std::size_t i = 0; i < ranges; ++i)
            top = hn::Max(top, hn::Load(kF32, statistics + 2 * i * rows + row));
        Vec total = hn::Zero(kF32);
        for (std::size_t i = 0; i < ranges; ++i) {
            float const* const range = statistics + 2 * i * rows + row;
            Vec const factor = exp2_of_negative(hn::Sub(hn::Load(kF32, range), top));
            total = hn::MulAdd(hn::Load(kF32, range + rows), factor, total);
        }
        hn::Store(top, kF32, largest + row);
        hn::Store(hn::Div(hn::Set(kF32, 1.0f), total), kF32, weight + row);
    }
}

/// Logits become weight * 2^(logit - largest).
void weigh(
    float* logits, std::size_t count, std::size_t rows, float const* largest, float const* weight) {
    for (std::size_t row = 0; row < rows; row += kLanes) {
        Vec const top = hn::Load(kF32, largest + row);
        Vec const scale = hn::Load(kF32, weight + row);
        for (std::size_t k = 0; k < count; ++k) {
            float* const at = logits + k * rows + row;
            Vec const p = exp2_of_negative(hn::Sub(hn::Load(kF32, at), top));
            hn::Store(hn::Mul(p, scale), kF32, at);
        }
    }
}

HWY_INLINE float sum_rows(float const* from, std::size_t count) {
    Vec total = hn::Zero(kF32);
    std::size_t row = 0;
    for (; row + kLanes <= count; row += kLanes)
        total = hn::Add(total, hn::LoadU(kF32, from + row));
    if (row < count)
        total = hn::Add(
            total, hn::IfThenElseZero(hn::FirstN(kF32, count - row), hn::LoadU(kF32, from + row)));
    return hn::GetLane(hn::SumOfLanes(kF32, total));
}

void range_sums(RowPlan const& plan,
                float const* queries,
                KeyRange const& range,
                std::uint32_t prefix,
                float softcap,
                float const* largest,
                float const* weight,
                TileMemory const& memory,
                float* sums,
                std::size_t stride) {
    float const* keys[kTileKeys];
    for (std::size_t token = range.begin; token < range.end; token += kTileKeys) {
        std::size_t const count = std::min(kTileKeys, range.end - token);
        tile_keys(range, token, count, memory, keys);
        auto segment = plan.segments.begin();
        for (std::size_t index = 0; index < plan.panels.size(); ++index) {
            Panel panel = plan.panels[index];
            panel.queries = queries + panel.row * range.keys->head_dim;
            panel_logits(panel, keys, count, range.keys->head_dim, softcap, memory.logits);
            mask_future(plan, panel, token, count, prefix, memory.logits);
            weigh(memory.logits, count, panel.rows, largest + panel.row, weight + panel.row);
            for (; segment != plan.segments.end() && segment->panel == index; ++segment) {
                float* const out = sums + segment->head * stride + (token - range.begin);
                for (std::size_t k = 0; k < count; ++k)
                    out[k] += sum_rows(memory.logits + k * panel.rows + segment->begin,
                                       segment->end - segment->begin);
            }
        }
    }
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::cpu {

HWY_EXPORT(target);
HWY_EXPORT(range_statistics);
HWY_EXPORT(join_statistics);
HWY_EXPORT(range_sums);

Simd simd() {
    return HWY_DYNAMIC_DISPATCH(target)();
}

RowPlan::RowPlan(std::size_t group_heads, std::size_t window_tokens, Simd const& simd)
    : group(group_heads),
      window(window_tokens),
      rows(group * window),
      rows_padded(round_up(rows, simd.lanes)) {
    std::size_t const vecs = rows_padded / simd.lanes;
    std::size_t const count = (vecs + simd.panel_vecs_max - 1) / simd.panel_vecs_max;
    for (std::size_t i = 0; i < count; ++i) {  // Panels of nearly equal width.
        std::size_t const begin = vecs * i / count * simd.lanes;
        std::size_t const end = vecs * (i + 1) / count * simd.lanes;
        panels.push_back({begin, end - begin, nullptr});
        for (std::size_t head = begin / window; head < group && head * window < end; ++head)
            segments.push_back({i, head, std::max(head * window, begin) - begin,
                                std::min((head + 1) * window, end) - begin});
    }
}

std::size_t padded_dim(std::size_t head_dim) {
    return round_up(head_dim, simd().lanes);
}

std::size_t tile_floats(std::size_t head_dim) {
    return kTileKeys * padded_dim(head_dim) + (kTileKeys * kPanelVecsMax + 1) * simd().lanes;
}

TileMemory tile_memory(float* memory, std::size_t head_dim) {
    return {memory, memory + kTileKeys * padded_dim(head_dim)};
}

void range_statistics(RowPlan const& plan,
                      float const* queries,
                      KeyRange const& range,
                      std::uint32_t prefix,
                      float softcap,
                      TileMemory const& memory,
                      float* largest,
                      float* sum) {
    HWY_DYNAMIC_DISPATCH(range_statistics)
    (plan, queries, range, prefix, softcap, memory, largest, sum);
}

void join_statistics(RowPlan const& plan,
                     float const* statistics,
                     std::size_t ranges,
                     float* largest,
                     float* weight) {
    HWY_DYNAMIC_DISPATCH(join_statistics)(plan, statistics, ranges, largest, weight);
}

void range_sums(RowPlan const& plan,
                float const* queries,
                KeyRange const& range,
                std::uint32_t prefix,
                float softcap,
                float const* largest,
                float const* weight,
                TileMemory const& memory,
                float* sums,
                std::size_t stride) {
    HWY_DYNAMIC_DISPATCH(range_sums)
    (plan, queries, range, prefix, softcap, largest, weight, memory, sums, stride);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
