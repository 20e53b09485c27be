#include "kernels/cpu/surrogate_tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>

// Left out: as in score_tiles.cc.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/surrogate_tiles.cc"
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

constexpr float kSquaresLeast = 0x1p-40F;

/// A token's cosines and sines: those of its block's beginning turned by those of its place in it.
struct Angles {
    float* cosines;  // [pairs], then zeros to whole vectors.
    float* sines;

    HWY_INLINE void set(SurrogateArgs const& args, std::uint32_t token) const {
        std::size_t const pairs = args.pairs;
        float const* const inner = args.turns.data() + token % kTurnBlock * 2 * pairs;
        float const* const outer =
            args.turns.data() + (kTurnBlock + token / kTurnBlock) * 2 * pairs;
        std::size_t i = 0;
        for (; i + kLanes <= pairs; i += kLanes) {
            Vec const c = hn::LoadU(kF32, inner + i);
            Vec const s = hn::LoadU(kF32, inner + pairs + i);
            Vec const block_c = hn::LoadU(kF32, outer + i);
            Vec const block_s = hn::LoadU(kF32, outer + pairs + i);
            hn::StoreU(hn::NegMulAdd(block_s, s, hn::Mul(block_c, c)), kF32, cosines + i);
            hn::StoreU(hn::MulAdd(block_s, c, hn::Mul(block_c, s)), kF32, sines + i);
        }
        for (; i < pairs; ++i) {
            cosines[i] = outer[i] * inner[i] - outer[pairs + i] * inner[pairs + i];
            sines[i] = outer[pairs + i] * inner[i] + outer[i] * inner[pairs + i];
        }
    }
};

/// Turns a key back: dims (i, i + pairs).
HWY_INLINE void turn_halves(Angles const& angles, std::size_t pairs, float* row) {
    float* const other = row + pairs;
    std::size_t i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
        Vec const c = hn::LoadU(kF32, angles.cosines + i);
        Vec const s = hn::LoadU(kF32, angles.sines + i);
        Vec const a = hn::LoadU(kF32, row + i);
        Vec const b = hn::LoadU(kF32, other + i);
        hn::StoreU(hn::MulAdd(b, s, hn::Mul(a, c)), kF32, row + i);
        hn::StoreU(hn::NegMulAdd(a, s, hn::Mul(b, c)), kF32, other + i);
    }
    for (; i < pairs; ++i) {
        float const a = row[i];
        float const b = other[i];
        row[i] = a * angles.cosines[i] + b * angles.sines[i];
        other[i] = b * angles.cosines[i] - a * angles.sines[i];
    }
}

/// The same of dims (2i, 2i + 1).
HWY_INLINE void turn_pairs(Angles const& angles, std::size_t pairs, float* row) {
    std::size_t i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
        Vec const c = hn::LoadU(kF32, angles.cosines + i);
        Vec const s = hn::LoadU(kF32, angles.sines + i);
        Vec a;
        Vec b;
        hn::LoadInterleaved2(kF32, row + 2 * i, a, b);
        hn::StoreInterleaved2(hn::MulAdd(b, s, hn::Mul(a, c)), hn::NegMulAdd(a, s, hn::Mul(b, c)),
                              kF32, row + 2 * i);
    }
    for (; i < pairs; ++i) {
        float const a = row[2 * i];
        float const b = row[2 * i + 1];
        row[2 * i] = a * angles.cosines[i] + b * angles.sines[i];
        row[2 * i + 1] = b * angles.cosines[i] - a * angles.sines[i];
    }
}

/// `floats` are whole vectors.
HWY_INLINE float squares(float const* row, std::size_t floats) {
    Vec sum = hn::Zero(kF32);
    for (std::size_t i = 0; i < floats; i += kLanes) {
        Vec const x = hn::Load(kF32, row + i);
        sum = hn::MulAdd(x, x, sum);
    }
    return hn::GetLane(hn::SumOfLanes(kF32, sum));
}

/// ln ‖x‖ of every row, in the place of its squares. [count], with room to whole vectors.
HWY_INLINE void logarithms(float* values, std::size_t count) {
    for (std::size_t i = 0; i < count; i += kLanes) {
        Vec const x = hn::Load(kF32, values + i);
        Vec const log = hn::Log(kF32, hn::Max(x, hn::Set(kF32, kSquaresLeast)));
        hn::Store(hn::Mul(log, hn::Set(kF32, 0.5F)), kF32, values + i);
    }
}

/// Products of one head's weights with kSurrogateTokens tokens' rows, `floats` apart.
HWY_INLINE void products(float const* weights,
                         float const* tokens,
                         std::size_t floats,
                         float* out) {
    static_assert(kSurrogateTokens == 4);
    Vec sums[kSurrogateTokens] = {hn::Zero(kF32), hn::Zero(kF32), hn::Zero(kF32), hn::Zero(kF32)};
    for (std::size_t i = 0; i < floats; i += kLanes) {
        Vec const w = hn::Load(kF32, weights + i);
        for (std::uint32_t t = 0; t < kSurrogateTokens; ++t)
            sums[t] = hn::MulAdd(w, hn::Load(kF32, tokens + t * floats + i), sums[t]);
    }
    for (std::uint32_t t = 0; t < kSurrogateTokens; ++t)
        out[t] = hn::GetLane(hn::SumOfLanes(kF32, sums[t]));
}

void surrogate_scores(SurrogateArgs const& args,
                      std::uint32_t begin,
                      std::uint32_t end,
                      float const* rows,
                      float* memory) {
    std::size_t const heads = args.keys.heads;
    std::size_t const dim = args.keys.head_dim;
    std::size_t const row = surrogate_row(dim);
    std::size_t const token_floats = 2 * heads * row;
    std::size_t const columns = args.keys.tokens - args.window;
    std::size_t const features = surrogate_features(heads, dim);
    float* const norms = memory + kSurrogateTokens * token_floats + 2 * row;  // [tokens, 2 * heads]
    Angles const angles{memory + kSurrogateTokens * token_floats,
                        memory + kSurrogateTokens * token_floats + row};

    for (std::uint32_t first = begin; first < end; first += kSurrogateTokens) {
        std::uint32_t const count = std::min(kSurrogateTokens, end - first);
        for (std::uint32_t t = 0; t < count; ++t) {
            float* const own = memory + t * token_floats;
            if (args.pairs != 0) angles.set(args, first + t);
            for (std::uint32_t head = 0; head < heads; ++head) {
                float* const key = own + head * row;
                float* const value = own + (heads + head) * row;
                widen_row(args.keys.row(head, first + t), args.keys, key);
                widen_row(args.values.row(head, first + t), args.values, value);
                if (args.pairs != 0 && args.interleaved) turn_pairs(angles, args.pairs, key);
                if (args.pairs != 0 && !args.interleaved) turn_halves(angles, args.pairs, key);
                norms[t * 2 * heads + head] = squares(key, row);
                norms[t * 2 * heads + heads + head] = squares(value, row);
            }
        }
        logarithms(norms, count * 2 * heads);
        for (std::size_t head = 0; head < heads; ++head) {
            float sums[kSurrogateTokens];
            products(rows + head * token_floats, memory, token_floats, sums);
            float const* const rest = args.weights.data() + (head + 1) * features - 2 * heads - 1;
            for (std::uint32_t t = 0; t < count; ++t) {
                float sum = sums[t] + rest[2 * heads];
                for (std::size_t i = 0; i < 2 * heads; ++i)
                    sum += rest[i] * norms[t * 2 * heads + i];
                args.scores[head * columns + first + t] =
                    std::isfinite(sum) ? sum : std::numeric_limits<float>::quiet_NaN();
            }
        }
    }
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::cpu {

HWY_EXPORT(surrogate_scores);

void surrogate_scores(SurrogateArgs const& args,
                      std::uint32_t begin,
                      std::uint32_t end,
                      float const* rows,
                      float* memory) {
    HWY_DYNAMIC_DISPATCH(surrogate_scores)(args, begin, end, rows, memory);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
