#include "kernels/cpu/surrogate_tiles.h"

#include <algorithm>
#include <cmath>
#include <hwy/cache_control.h>
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
        float const* const inner = args.turns.data() + token % kTurnBlock * (2 * pairs);
        float const* const outer =
            args.turns.data() + (kTurnBlock + token / kTurnBlock) * (2 * pairs);
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

/// ln ‖x‖ of every row, in the place of its squares. `floats` are whole vectors.
HWY_INLINE void logarithms(float* values, std::size_t floats) {
    for (std::size_t i = 0; i < floats; i += kLanes) {
        Vec const x = hn::Max(hn::Load(kF32, values + i), hn::Set(kF32, kSquaresLeast));
        hn::Store(hn::Mul(hn::Log(kF32, x), hn::Set(kF32, 0.5F)), kF32, values + i);
    }
}

/// Adds one row of kSurrogateTokens tokens, times the weights of kHeads heads, to vectors of sums
/// [heads, kSurrogateTokens, kLanes]. A row has `floats`; a head's next weights are `apart`.
template <std::size_t kHeads>
HWY_INLINE void add_products(
    float const* weights, std::size_t apart, float const* tokens, std::size_t floats, float* sums) {
    constexpr std::size_t kTokens = 4;
    static_assert(kSurrogateTokens % kTokens == 0);
    for (std::size_t first = 0; first < kSurrogateTokens; first += kTokens) {
        float* const of_token = sums + first * kLanes;
        float const* const rows = tokens + first * floats;
        Vec all[kHeads][kTokens];
        for (std::size_t h = 0; h < kHeads; ++h)
            for (std::size_t t = 0; t < kTokens; ++t)
                all[h][t] = hn::Load(kF32, of_token + (h * kSurrogateTokens + t) * kLanes);
        for (std::size_t i = 0; i < floats; i += kLanes)
            for (std::size_t h = 0; h < kHeads; ++h) {
                Vec const w = hn::Load(kF32, weights + h * apart + i);
                for (std::size_t t = 0; t < kTokens; ++t)
                    all[h][t] = hn::MulAdd(w, hn::Load(kF32, rows + t * floats + i), all[h][t]);
            }
        for (std::size_t h = 0; h < kHeads; ++h)
            for (std::size_t t = 0; t < kTokens; ++t)
                hn::Store(all[h][t], kF32, of_token + (h * kSurrogateTokens + t) * kLanes);
    }
}

/// A tile of tokens: one row of each is held at a time.
class Tile {
public:
    Tile(SurrogateArgs const& args, float const* weights, float* memory)
        : args_(args),
          heads_(args.keys.heads),
          floats_(surrogate_row(args.keys.head_dim)),
          norm_floats_(surrogate_norms(heads_)),
          weights_(weights),
          tokens_(memory),
          angles_(tokens_ + kSurrogateTokens * floats_),
          norms_(angles_ + kSurrogateTokens * (2 * floats_)),
          sums_(norms_ + kSurrogateTokens * norm_floats_) {}

    HWY_INLINE void score(std::uint32_t first, std::uint32_t count) {
        for (std::uint32_t t = 0; args_.pairs != 0 && t < count; ++t)
            angles(t).set(args_, first + t);
        std::fill_n(sums_, heads_ * kSurrogateTokens * kLanes, 0.0F);
        for (std::size_t of = 0; of < 2 * heads_; ++of) {
            for (std::uint32_t t = 0; t < count; ++t)
                load(of, first, t);
            if (of + 1 < 2 * heads_) fetch(of + 1, first, count);
            add(weights_ + of * floats_, tokens_, floats_);
        }
        logarithms(norms_, count * norm_floats_);
        add(weights_ + 2 * heads_ * floats_, norms_, norm_floats_);
        store(first, count);
    }

private:
    HWY_INLINE Angles angles(std::uint32_t t) const {
        float* const cosines = angles_ + t * (2 * floats_);
        return {cosines, cosines + floats_};
    }
    HWY_INLINE RowsView const& rows(std::size_t of) const {
        return of < heads_ ? args_.keys : args_.values;
    }
    HWY_INLINE std::byte* row(std::size_t of, std::uint32_t token) const {
        return rows(of).row(static_cast<std::uint32_t>(of < heads_ ? of : of - heads_), token);
    }

    /// The next head's rows lie far away: no hardware foresees them.
    HWY_INLINE void fetch(std::size_t of, std::uint32_t first, std::uint32_t count) const {
        constexpr std::uint64_t kLine = 64;
        std::uint64_t const bytes = rows(of).dim_stride == 1 ? rows(of).row_bytes() : 1;
        for (std::uint32_t t = 0; t < count; ++t)
            for (std::uint64_t at = 0; at < bytes; at += kLine)
                hwy::Prefetch(row(of, first + t) + at);
    }

    HWY_INLINE void load(std::size_t of, std::uint32_t first, std::uint32_t t) {
        float* const own = tokens_ + t * floats_;
        widen_row(row(of, first + t), rows(of), own);
        norms_[t * norm_floats_ + of] = squares(own, floats_);
        if (of >= heads_ || args_.pairs == 0) return;
        if (args_.interleaved)
            turn_pairs(angles(t), args_.pairs, own);
        else
            turn_halves(angles(t), args_.pairs, own);
    }

    HWY_INLINE void add(float const* weights, float const* tokens, std::size_t floats) {
        std::size_t const apart = surrogate_weights(heads_, args_.keys.head_dim);
        std::size_t head = 0;
        for (; head + 2 <= heads_; head += 2)
            add_products<2>(weights + head * apart, apart, tokens, floats,
                            sums_ + head * kSurrogateTokens * kLanes);
        if (head < heads_)
            add_products<1>(weights + head * apart, apart, tokens, floats,
                            sums_ + head * kSurrogateTokens * kLanes);
    }

    HWY_INLINE void store(std::uint32_t first, std::uint32_t count) {
        std::size_t const columns = args_.keys.tokens - args_.window;
        std::size_t const features = surrogate_features(heads_, args_.keys.head_dim);
        for (std::size_t head = 0; head < heads_; ++head) {
            float const constant = args_.weights[(head + 1) * features - 1];
            for (std::uint32_t t = 0; t < count; ++t) {
                float const* const at = sums_ + (head * kSurrogateTokens + t) * kLanes;
                float const sum = constant + hn::GetLane(hn::SumOfLanes(kF32, hn::Load(kF32, at)));
                std::size_t const column = head * columns + first + t;
                args_.scores[column] = std::isfinite(sum) ? std::max(sum, attention(column))
                                                          : std::numeric_limits<float>::quiet_NaN();
            }
        }
    }

    float attention(std::size_t column) const {
        if (args_.attention.empty()) return -std::numeric_limits<float>::infinity();
        float const seen = args_.attention[column];
        return std::log(seen > kAttentionLeast ? seen : kAttentionLeast);
    }

    SurrogateArgs const& args_;
    std::size_t heads_;
    std::size_t floats_;       // Of a row.
    std::size_t norm_floats_;  // Of a token's norms.
    float const* weights_;     // [heads, surrogate_weights]
    float* tokens_;            // [kSurrogateTokens, floats]
    float* angles_;            // [kSurrogateTokens, 2, floats]
    float* norms_;             // [kSurrogateTokens, norm_floats]
    float* sums_;              // [heads, kSurrogateTokens, kLanes]
};

void surrogate_scores(SurrogateArgs const& args,
                      std::uint32_t begin,
                      std::uint32_t end,
                      float const* weights,
                      float* memory) {
    Tile tile(args, weights, memory);
    for (std::uint32_t first = begin; first < end; first += kSurrogateTokens)
        tile.score(first, std::min(kSurrogateTokens, end - first));
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
                      float const* weights,
                      float* memory) {
    HWY_DYNAMIC_DISPATCH(surrogate_scores)(args, begin, end, weights, memory);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
