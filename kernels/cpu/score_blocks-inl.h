// Products of queries and keys in blocks of registers, for each instruction set.
#if defined(DKV_KERNELS_CPU_SCORE_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DKV_KERNELS_CPU_SCORE_BLOCKS_INL_H_
#undef DKV_KERNELS_CPU_SCORE_BLOCKS_INL_H_
#else
#define DKV_KERNELS_CPU_SCORE_BLOCKS_INL_H_
#endif

#include <cstring>
#include <limits>

#include "kernels/cpu/score_tiles.h"
#include "kernels/cpu/widen-inl.h"

// Highway has no bf16 products for x86 yet.
#undef DKV_BF16_PAIRS
#if HWY_TARGET == HWY_AVX3 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
#define DKV_BF16_PAIRS 1
#else
#define DKV_BF16_PAIRS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// Blocks of keys × vectors of rows whose accumulators, with a few registers to spare, fill the
// file: 32 registers, or 16.
constexpr bool kManyRegisters = HWY_ARCH_ARM || HWY_TARGET <= HWY_AVX3;
constexpr std::size_t kVecsMax = kManyRegisters ? 4 : 2;
constexpr std::size_t block_keys(std::size_t vecs) {
    if (kManyRegisters) return vecs == 1 ? 16 : vecs == 2 ? 12 : vecs == 3 ? 8 : 6;
    return vecs == 1 ? 12 : 6;
}

bool multiplies_pairs() {
#if DKV_BF16_PAIRS
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return false;
#endif
}

/// sum + query * key in every lane; of pairs of bf16, each product exact before it is added.
template <bool kPairs>
HWY_INLINE Vec add_product(Vec query, Vec key, Vec sum) {
#if DKV_BF16_PAIRS
    // No intrinsic: those want all that they are inlined into to be compiled for AVX512_BF16.
    if constexpr (kPairs) {
        auto raw = sum.raw;
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(raw) : "v"(query.raw), "v"(key.raw));
        return Vec{raw};
    }
#endif
    return hn::MulAdd(query, key, sum);
}

/// Times `scale`; NaN and the infinities become numbers, so that every sum is one.
HWY_INLINE Vec finish_product(Vec product, Vec scale) {
    Vec const logit = hn::Mul(product, scale);
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4  // MAXPS gives its second operand when one is NaN.
    Vec const number = logit;
#else
    Vec const number = hn::IfThenElse(hn::IsNaN(logit), hn::Set(kF32, -kLargest), logit);
#endif
    return hn::Min(hn::Max(number, hn::Set(kF32, -kLargest)), hn::Set(kF32, kLargest));
}

/// logits[k, rows] = scale * queries · keys[k] for a block of keys, all in registers.
template <std::size_t kVecs, bool kPairs>
HWY_INLINE void block_logits(float const* HWY_RESTRICT queries,
                             std::byte const* const* keys,
                             std::size_t steps,
                             float scale,
                             float* HWY_RESTRICT logits) {
    constexpr std::size_t height = block_keys(kVecs);
    Vec sums[height][kVecs];
    for (auto& row : sums)
        for (Vec& sum : row)
            sum = hn::Zero(kF32);
    for (std::size_t step = 0; step < steps; ++step, queries += kVecs * kLanes) {
        Vec query[kVecs];
        for (std::size_t v = 0; v < kVecs; ++v)
            query[v] = hn::Load(kF32, queries + v * kLanes);
        for (std::size_t k = 0; k < height; ++k) {
            float word;
            std::memcpy(&word, keys[k] + step * sizeof word, sizeof word);
            Vec const key = hn::Set(kF32, word);
            for (std::size_t v = 0; v < kVecs; ++v)
                sums[k][v] = add_product<kPairs>(query[v], key, sums[k][v]);
        }
    }
    Vec const factor = hn::Set(kF32, scale);
    for (std::size_t k = 0; k < height; ++k)
        for (std::size_t v = 0; v < kVecs; ++v)
            hn::Store(finish_product(sums[k][v], factor), kF32, logits + (k * kVecs + v) * kLanes);
}

/// logits[k, rows] for a panel and a tile; past the last key, up to a whole block, the last key
/// again.
template <std::size_t kVecs, bool kPairs>
HWY_NOINLINE void tile_logits(float const* queries,
                              std::byte const* const* keys,
                              std::size_t count,
                              std::size_t steps,
                              float scale,
                              float* logits) {
    for (std::size_t k = 0; k < count; k += block_keys(kVecs))
        block_logits<kVecs, kPairs>(queries, keys + k, steps, scale, logits + k * kVecs * kLanes);
}

using TileLogits =
    void (*)(float const*, std::byte const* const*, std::size_t, std::size_t, float, float*);

template <bool kPairs>
TileLogits tile_logits_of(std::size_t vecs) {
    switch (vecs) {
        case 1: return tile_logits<1, kPairs>;
        case 2: return tile_logits<2, kPairs>;
#if HWY_ARCH_ARM || HWY_TARGET <= HWY_AVX3
        case 3: return tile_logits<3, kPairs>;
        case 4: return tile_logits<4, kPairs>;
#endif
        default: DKV_ASSERT(false);
    }
    return nullptr;
}

void panel_products(RowPlan const& plan,
                    Panel const& panel,
                    float const* queries,
                    std::byte const* const* keys,
                    std::size_t count,
                    float scale,
                    float* logits) {
    std::size_t const vecs = panel.rows / kLanes;
#if DKV_BF16_PAIRS
    TileLogits const body = plan.pairs ? tile_logits_of<true>(vecs) : tile_logits_of<false>(vecs);
#else
    TileLogits const body = tile_logits_of<false>(vecs);
#endif
    body(queries + panel.row * plan.steps, keys, count, plan.steps, scale, logits);
}

/// The row itself where it can be met in place, else a copy in `memory`.
inline std::byte const* pairs_row(std::byte const* row, RowsView const& view, float* memory) {
    if (view.dim_stride == 1 && view.head_dim % 2 == 0) return row;
    auto* const copy = reinterpret_cast<std::byte*>(memory);
    for (std::size_t dim = 0; dim < view.head_dim; ++dim)
        std::memcpy(copy + 2 * dim, row + 2 * dim * view.dim_stride, 2);
    if (view.head_dim % 2 != 0) std::memset(copy + 2 * std::size_t{view.head_dim}, 0, 2);
    return copy;
}

/// Where each key of the tile lies as plan.steps words.
inline void tile_keys(RowPlan const& plan,
                      KeyRange const& range,
                      std::size_t token,
                      std::size_t count,
                      TileMemory const& memory,
                      std::byte const** keys) {
    RowsView const& view = *range.keys;
    std::size_t const padded = round_up(std::size_t{view.head_dim}, kLanes);
    for (std::size_t k = 0; k < kTileKeys; ++k) {
        if (k >= count) {
            keys[k] = keys[count - 1];
            continue;
        }
        std::byte const* const row = view.row(range.head, static_cast<std::uint32_t>(token + k));
        float* const copy = memory.keys + k * padded;
        keys[k] = plan.pairs ? pairs_row(row, view, copy)
                             : reinterpret_cast<std::byte const*>(dense_row(row, view, copy));
    }
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
