#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/cpu/ops.h"

// Left out: what SSE4 is next to anyway, and vectors without a size, as in score_tiles.cc.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pool.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;
constexpr F32 kF32;
constexpr std::size_t kLanes = hn::MaxLanes(kF32);

/// out[t] = join of in[t] … in[t + kernel - 1].
template <class Join>
HWY_INLINE void windows(float const* HWY_RESTRICT in,
                        float* HWY_RESTRICT out,
                        std::size_t count,
                        std::size_t kernel,
                        Join join) {
    for (std::size_t t = 0; t < count; t += kLanes) {
        Vec joined = hn::LoadU(kF32, in + t);
        for (std::size_t i = 1; i < kernel; ++i)
            joined = join(joined, hn::LoadU(kF32, in + t + i));
        hn::StoreU(joined, kF32, out + t);
    }
}

void max_windows(float const* in, float* out, std::size_t count, std::size_t kernel) {
    windows(in, out, count, kernel, [](Vec a, Vec b) HWY_ATTR {
        return hn::IfThenElse(hn::Or(hn::Gt(b, a), hn::IsNaN(b)), b, a);
    });
}

void sum_windows(float const* in, float* out, std::size_t count, std::size_t kernel) {
    windows(in, out, count, kernel, [](Vec a, Vec b) HWY_ATTR { return hn::Add(a, b); });
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::cpu {
namespace {

HWY_EXPORT(max_windows);
HWY_EXPORT(sum_windows);

// Up to here, joining every element of every window is faster than the scans, for it is vectors.
constexpr std::size_t kShortKernelMax = 31;
constexpr std::size_t kBlockTokens = 2048;  // The block and its result fit in L1.
constexpr std::size_t kVectorMax = 64;      // Lanes at most.

/// Short windows, block by block, from a copy that has `nothing` beyond the row's ends.
void pool_short(std::span<float const> scores,
                std::span<float> out,
                std::size_t kernel,
                Pool pool) {
    bool const most = pool == Pool::Max;
    float const nothing = most ? -std::numeric_limits<float>::infinity() : 0.0f;
    std::size_t const half = kernel / 2;
    float in[kBlockTokens + kShortKernelMax + kVectorMax];
    float joined[kBlockTokens + kVectorMax];
    for (std::size_t begin = 0; begin < scores.size(); begin += kBlockTokens) {
        std::size_t const count = std::min(kBlockTokens, scores.size() - begin);
        std::fill(std::begin(in), std::end(in), nothing);
        std::size_t const first = begin - std::min(half, begin);
        std::size_t const last = std::min(begin + count + half, scores.size());
        std::copy(scores.begin() + static_cast<std::ptrdiff_t>(first),
                  scores.begin() + static_cast<std::ptrdiff_t>(last), in + (first + half - begin));
        if (most)
            HWY_DYNAMIC_DISPATCH(max_windows)(in, joined, count, kernel);
        else
            HWY_DYNAMIC_DISPATCH(sum_windows)(in, joined, count, kernel);
        for (std::size_t t = 0; t < count; ++t)
            out[begin + t] = most ? joined[t] : joined[t] / static_cast<float>(kernel);
    }
}

/// The larger one; NaN if either is.
float larger(float a, float b) noexcept {
    return b > a || b != b ? b : a;
}

/// Any windows, in time independent of the kernel (van Herk 1992): cut the row, with `half`
/// elements of `nothing` on either side, into blocks of the kernel's length; any window is the tail
/// of one block joined to the head of the next. Unlike a running sum it forgets a NaN when the
/// window has passed.
template <class T, class Join>
void pool_long(
    std::span<float const> scores, std::span<float> out, std::size_t half, T nothing, Join join) {
    std::size_t const tokens = scores.size();
    half = std::min(half, tokens);
    std::size_t const kernel = 2 * half + 1;
    std::vector<T> heads(tokens + 2 * half, nothing);
    std::copy(scores.begin(), scores.end(), heads.begin() + static_cast<std::ptrdiff_t>(half));
    std::vector<T> tails = heads;
    for (std::size_t i = 1; i < heads.size(); ++i)
        if (i % kernel != 0) heads[i] = join(heads[i - 1], heads[i]);
    for (std::size_t i = tails.size() - 1; i-- > 0;)
        if ((i + 1) % kernel != 0) tails[i] = join(tails[i], tails[i + 1]);
    for (std::size_t t = 0; t < tokens; ++t) {
        bool const whole_block = t % kernel == 0;
        out[t] = static_cast<float>(whole_block ? tails[t] : join(tails[t], heads[t + kernel - 1]));
    }
}

void pool_row(std::span<float const> scores,
              std::span<float> out,
              std::uint32_t kernel,
              Pool pool) {
    if (kernel <= kShortKernelMax) {
        pool_short(scores, out, kernel, pool);
    } else if (pool == Pool::Max) {
        pool_long(scores, out, kernel / 2, -std::numeric_limits<float>::infinity(), larger);
    } else {
        pool_long(scores, out, kernel / 2, 0.0, std::plus<double>());
        for (float& value : out)
            value /= static_cast<float>(kernel);
    }
}

}  // namespace

Result<void> pool(PoolArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    workers.for_each(args.tokens == 0 ? 0 : args.heads, [&](std::size_t head, std::size_t) {
        pool_row(args.scores.subspan(head * args.tokens, args.tokens),
                 args.out.subspan(head * args.tokens, args.tokens), args.kernel, args.pool);
    });
    return {};
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
