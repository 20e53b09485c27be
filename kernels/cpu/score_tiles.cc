#include "kernels/cpu/score_tiles.h"

#include <algorithm>
#include <limits>

#include "kernels/host.h"

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
#include "kernels/cpu/score_blocks-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Simd target() {
    bool const pairs = multiplies_pairs();
    char const* const name = HWY_TARGET == HWY_AVX3   ? (pairs ? "avx512_bf16" : "avx512")
                             : HWY_TARGET == HWY_AVX2 ? "avx2"
                             : HWY_TARGET == HWY_SSE4 ? "sse4"
                             : HWY_TARGET == HWY_NEON ? "neon"
                                                      : hwy::TargetName(HWY_TARGET);
    return {name, kLanes, kVecsMax, pairs};
}

/// 2^x for x <= 0, and 0 below 2^-126. Half the work of an exp for every argument. Relative error
/// below 2e-7.
HWY_INLINE Vec exp2_of_negative(Vec x) {
    x = hn::Max(x, hn::Set(kF32, -127.0f));
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

/// logits[k, rows], to base 2, of `count` keys from `token` on.
void panel_logits(RowPlan const& plan,
                  Panel const& panel,
                  float const* queries,
                  std::byte const* const* keys,
                  std::size_t token,
                  std::size_t count,
                  std::uint32_t prefix,
                  LogitForm form,
                  float* logits) {
    panel_products(plan, panel, queries, keys, count, form.scale, logits);
    if (form.softcap != 0) {
        Vec const cap = hn::Set(kF32, form.softcap);
        Vec const to_base_2 = hn::Set(kF32, kLog2E);
        for (std::size_t i = 0; i < count * panel.rows; i += kLanes) {
            Vec const capped = hn::Tanh(kF32, hn::Div(hn::Load(kF32, logits + i), cap));
            // Not times softcap * kLog2E: of the largest caps that is infinite.
            hn::Store(finish_product(hn::Mul(cap, capped), to_base_2), kF32, logits + i);
        }
    }
    if (token + count > prefix) mask_future(plan, panel, token, count, prefix, logits);
}

/// Adds a tile's logits to the statistics of rows; with kKeep, they become powers to the base of
/// `tops`.
template <bool kKeep>
void add_statistics(
    float* logits, std::size_t count, std::size_t rows, float* largest, float* sum, float* tops) {
    for (std::size_t row = 0; row < rows; row += kLanes) {
        Vec const before = hn::Load(kF32, largest + row);
        Vec after = before;
        for (std::size_t k = 0; k < count; ++k)
            after = hn::Max(after, hn::Load(kF32, logits + k * rows + row));
        Vec total = hn::Mul(hn::Load(kF32, sum + row), exp2_of_negative(hn::Sub(before, after)));
        for (std::size_t k = 0; k < count; ++k) {
            float* const at = logits + k * rows + row;
            Vec const power = exp2_of_negative(hn::Sub(hn::Load(kF32, at), after));
            if (kKeep) hn::Store(power, kF32, at);
            total = hn::Add(total, power);
        }
        hn::Store(after, kF32, largest + row);
        hn::Store(total, kF32, sum + row);
        if (kKeep) hn::Store(after, kF32, tops + row);
    }
}

/// Asks for a tile's keys ahead: rows of other heads may lie between them, and pages end, which no
/// hardware foresees.
void prefetch_tile(KeyRange const& range, std::size_t token) {
    RowsView const& view = *range.keys;
    if (view.dim_stride != 1) return;
    std::size_t const end = std::min<std::size_t>(token + kTileKeys, range.end);
    std::size_t const row_bytes = view.head_dim * bytes_of(view.dtype);
    for (; token < end; ++token) {
        std::byte const* const row = view.row(range.head, static_cast<std::uint32_t>(token));
        for (std::size_t at = 0; at < row_bytes; at += 64)
            __builtin_prefetch(row + at, 0, 2);  // L1 is full.
    }
}

void range_statistics(RowPlan const& plan,
                      float const* queries,
                      KeyRange const& range,
                      std::uint32_t prefix,
                      LogitForm form,
                      TileMemory const& memory,
                      float* largest,
                      float* sum,
                      Kept const& kept) {
    std::fill_n(largest, plan.rows_padded, -kLargest);
    std::fill_n(sum, plan.rows_padded, 0.0f);
    std::byte const* keys[kTileKeys];
    float* powers = kept.powers;
    float* tops = kept.tops;
    for (std::size_t token = range.begin; token < range.end; token += kTileKeys) {
        std::size_t const count = std::min(kTileKeys, range.end - token);
        tile_keys(plan, range, token, count, memory, keys);
        for (Panel const& panel : plan.panels) {
            float* const logits = powers != nullptr ? powers : memory.logits;
            panel_logits(plan, panel, queries, keys, token, count, prefix, form, logits);
            if (panel.row == 0) prefetch_tile(range, token + kTileKeys);
            float* const most = largest + panel.row;
            float* const total = sum + panel.row;
            if (powers == nullptr) {
                add_statistics<false>(logits, count, panel.rows, most, total, nullptr);
                continue;
            }
            add_statistics<true>(logits, count, panel.rows, most, total, tops + panel.row);
            powers += kTileKeys * panel.rows;
        }
        if (powers != nullptr) tops += plan.rows_padded;
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

/// Logits become 2^(logit - largest), at most 1.
void raise(float* logits, std::size_t count, std::size_t rows, float const* largest) {
    for (std::size_t row = 0; row < rows; row += kLanes) {
        Vec const top = hn::Load(kF32, largest + row);
        for (std::size_t k = 0; k < count; ++k) {
            float* const at = logits + k * rows + row;
            Vec const below = hn::Min(hn::Sub(hn::Load(kF32, at), top), hn::Zero(kF32));
            hn::Store(exp2_of_negative(below), kF32, at);
        }
    }
}

#if HWY_TARGET != HWY_SCALAR
/// The sum of each of a vector's positions in blocks of four.
template <class D>
HWY_INLINE auto fold_blocks(D d, hn::VFromD<D> v) {
    if constexpr (hn::MaxLanes(d) == 4) {
        return v;
    } else {
        hn::Half<D> const half;
        return fold_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
}

/// {Σa, Σb, Σc, Σd}
HWY_INLINE auto sums_of_four(Vec a, Vec b, Vec c, Vec d) {
    hn::RepartitionToWide<hn::RebindToUnsigned<F32>> const twos;
    auto const ab = hn::BitCast(
        twos, hn::Add(hn::InterleaveLower(kF32, a, b), hn::InterleaveUpper(kF32, a, b)));
    auto const cd = hn::BitCast(
        twos, hn::Add(hn::InterleaveLower(kF32, c, d), hn::InterleaveUpper(kF32, c, d)));
    Vec const low = hn::BitCast(kF32, hn::InterleaveLower(twos, ab, cd));
    Vec const high = hn::BitCast(kF32, hn::InterleaveUpper(twos, ab, cd));
    return fold_blocks(kF32, hn::Add(low, high));
}
#endif

/// out[k] += Σ of factors[row] * powers[k, row] over kVecs vectors of rows.
template <std::size_t kVecs>
void add_rows(float const* HWY_RESTRICT powers,
              std::size_t rows,
              std::size_t count,
              Vec const* factors,
              float* HWY_RESTRICT out) {
    Vec factor[kVecs];
    std::copy_n(factors, kVecs, factor);
    auto const weighed = [&](std::size_t k) {
        float const* const from = powers + k * rows;
        Vec sum = hn::Mul(hn::Load(kF32, from), factor[0]);
        for (std::size_t v = 1; v < kVecs; ++v)
            sum = hn::MulAdd(hn::Load(kF32, from + v * kLanes), factor[v], sum);
        return sum;
    };
    std::size_t k = 0;
#if HWY_TARGET != HWY_SCALAR
    hn::FixedTag<float, 4> const four;
    for (; k + 4 <= count; k += 4) {
        auto const sums = sums_of_four(weighed(k), weighed(k + 1), weighed(k + 2), weighed(k + 3));
        hn::StoreU(hn::Add(hn::LoadU(four, out + k), sums), four, out + k);
    }
#endif
    for (; k < count; ++k)
        out[k] += hn::GetLane(hn::SumOfLanes(kF32, weighed(k)));
}

/// out[k] = the largest of itself and of factors[row] * powers[k, row] over `vecs` vectors of rows.
HWY_INLINE void raise_peaks(float const* HWY_RESTRICT powers,
                            std::size_t rows,
                            std::size_t count,
                            Vec const* factors,
                            std::size_t vecs,
                            float* HWY_RESTRICT out) {
    for (std::size_t k = 0; k < count; ++k) {
        float const* const from = powers + k * rows;
        Vec most = hn::Mul(hn::Load(kF32, from), factors[0]);
        for (std::size_t v = 1; v < vecs; ++v)
            most = hn::Max(most, hn::Mul(hn::Load(kF32, from + v * kLanes), factors[v]));
        out[k] = std::max(out[k], hn::GetLane(hn::MaxOfLanes(kF32, most)));
    }
}

/// Adds a panel's powers, each times its row's factor(row of the panel), to the sums of its heads;
/// the largest go to the peaks, where there are such.
/// `segment` is the panel's first one, and then the next panel's.
template <class Segments, class Factor>
HWY_INLINE void add_panel(RowPlan const& plan,
                          std::size_t index,
                          float const* powers,
                          std::size_t count,
                          Segments& segment,
                          Factor const& factor,
                          float* sums,
                          std::size_t stride,
                          float* peaks) {
    Panel const& panel = plan.panels[index];
    for (; segment != plan.segments.end() && segment->panel == index; ++segment) {
        std::size_t const first = segment->begin / kLanes * kLanes;
        Vec factors[kVecsMax];
        std::size_t vecs = 0;
        for (std::size_t row = first; row < segment->end; row += kLanes) {
            auto own = hn::FirstN(kF32, segment->end - row);
            if (row < segment->begin) own = hn::AndNot(hn::FirstN(kF32, segment->begin - row), own);
            factors[vecs++] = hn::IfThenElseZero(own, factor(panel.row + row));
        }
        float* const out = sums + segment->head * stride;
        switch (vecs) {
            case 1: add_rows<1>(powers + first, panel.rows, count, factors, out); break;
            case 2: add_rows<2>(powers + first, panel.rows, count, factors, out); break;
#if HWY_ARCH_ARM || HWY_TARGET <= HWY_AVX3
            case 3: add_rows<3>(powers + first, panel.rows, count, factors, out); break;
            case 4: add_rows<4>(powers + first, panel.rows, count, factors, out); break;
#endif
            default: DKV_ASSERT(false);
        }
        if (peaks != nullptr) raise_peaks(powers + first, panel.rows, count, factors, vecs, peaks);
    }
}

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
                float* peaks) {
    std::byte const* keys[kTileKeys];
    for (std::size_t token = range.begin; token < range.end; token += kTileKeys) {
        std::size_t const count = std::min(kTileKeys, range.end - token);
        tile_keys(plan, range, token, count, memory, keys);
        prefetch_tile(range, token + kTileKeys);
        auto segment = plan.segments.begin();
        for (std::size_t index = 0; index < plan.panels.size(); ++index) {
            Panel const& panel = plan.panels[index];
            panel_logits(plan, panel, queries, keys, token, count, prefix, form, memory.logits);
            raise(memory.logits, count, panel.rows, largest + panel.row);
            auto const factor = [&](std::size_t row) { return hn::Load(kF32, weight + row); };
            add_panel(plan, index, memory.logits, count, segment, factor,
                      sums + (token - range.begin), stride,
                      peaks == nullptr ? nullptr : peaks + (token - range.begin));
        }
    }
}

void kept_sums(RowPlan const& plan,
               Kept const& kept,
               std::size_t tokens,
               float const* largest,
               float const* weight,
               float* sums,
               std::size_t stride,
               float* peaks) {
    float const* powers = kept.powers;
    float const* tops = kept.tops;
    for (std::size_t token = 0; token < tokens; token += kTileKeys) {
        std::size_t const count = std::min(kTileKeys, tokens - token);
        auto const factor = [&](std::size_t row) {
            Vec const below = hn::Sub(hn::Load(kF32, tops + row), hn::Load(kF32, largest + row));
            return hn::Mul(hn::Load(kF32, weight + row), exp2_of_negative(below));
        };
        auto segment = plan.segments.begin();
        for (std::size_t index = 0; index < plan.panels.size(); ++index) {
            add_panel(plan, index, powers, count, segment, factor, sums + token, stride,
                      peaks == nullptr ? nullptr : peaks + token);
            powers += kTileKeys * plan.panels[index].rows;
        }
        tops += plan.rows_padded;
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
HWY_EXPORT(kept_sums);

Simd simd() {
    return HWY_DYNAMIC_DISPATCH(target)();
}

std::size_t padded_dim(std::size_t head_dim) {
    return round_up(head_dim, simd().lanes);
}

std::size_t tile_floats(std::size_t head_dim) {
    return kTileKeys * (padded_dim(head_dim) + kPanelVecsMax * simd().lanes);
}

TileMemory tile_memory(float* memory, std::size_t head_dim) {
    return {memory, memory + kTileKeys * padded_dim(head_dim)};
}

void range_statistics(RowPlan const& plan,
                      float const* queries,
                      KeyRange const& range,
                      std::uint32_t prefix,
                      LogitForm form,
                      TileMemory const& memory,
                      float* largest,
                      float* sum,
                      Kept const& kept) {
    HWY_DYNAMIC_DISPATCH(range_statistics)
    (plan, queries, range, prefix, form, memory, largest, sum, kept);
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
                LogitForm form,
                float const* largest,
                float const* weight,
                TileMemory const& memory,
                float* sums,
                std::size_t stride,
                float* peaks) {
    HWY_DYNAMIC_DISPATCH(range_sums)
    (plan, queries, range, prefix, form, largest, weight, memory, sums, stride, peaks);
}

void kept_sums(RowPlan const& plan,
               Kept const& kept,
               std::size_t tokens,
               float const* largest,
               float const* weight,
               float* sums,
               std::size_t stride,
               float* peaks) {
    HWY_DYNAMIC_DISPATCH(kept_sums)(plan, kept, tokens, largest, weight, sums, stride, peaks);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
