#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/ops.h"

namespace dkv::cpu {
namespace {

// Up to here, one sweep per element of the kernel is faster than the scans, for a sweep is vectors.
constexpr std::size_t kSweepKernelMax = 31;

/// The larger one; NaN if either is.
template <class T>
T larger(T a, T b) noexcept {
    return a > b || a != a ? a : b;
}

/// out[t] = join of scores[t - half … t + half], clipped to the row: one sweep per offset.
template <class Join>
void sweep(std::span<float const> scores, std::span<float> out, std::size_t half, Join join) {
    std::copy(scores.begin(), scores.end(), out.begin());
    std::size_t const tokens = scores.size();
    for (std::size_t offset = 1; offset <= std::min(half, tokens - 1); ++offset) {
        float const* const in = scores.data();
        float* const to = out.data();
        for (std::size_t t = 0; t < tokens - offset; ++t)
            to[t] = join(to[t], in[t + offset]);
        for (std::size_t t = offset; t < tokens; ++t)
            to[t] = join(to[t], in[t - offset]);
    }
}

/// The same in time independent of the kernel (van Herk 1992): cut the row, with `half` elements of
/// `neutral` on either side, into blocks of the kernel's length; any window is the tail of one
/// block joined to the head of the next. Unlike a running sum it forgets a NaN when the window has
/// passed.
template <class T, class Join>
void scan(
    std::span<float const> scores, std::span<float> out, std::size_t half, T neutral, Join join) {
    std::size_t const tokens = scores.size();
    half = std::min(half, tokens);
    std::size_t const kernel = 2 * half + 1;
    std::vector<T> heads(tokens + 2 * half, neutral);
    std::transform(scores.begin(), scores.end(), heads.begin() + static_cast<std::ptrdiff_t>(half),
                   [](float score) { return static_cast<T>(score); });
    std::vector<T> tails = heads;
    for (std::size_t i = 1; i < heads.size(); ++i)
        if (i % kernel != 0) heads[i] = join(heads[i - 1], heads[i]);
    for (std::size_t i = tails.size() - 1; i-- > 0;)
        if ((i + 1) % kernel != 0) tails[i] = join(tails[i], tails[i + 1]);
    for (std::size_t t = 0; t < tokens; ++t) {
        bool const whole_block = t % kernel == 0;
        T const value = whole_block ? tails[t] : join(tails[t], heads[t + kernel - 1]);
        out[t] = static_cast<float>(value);
    }
}

void pool_row(std::span<float const> scores,
              std::span<float> out,
              std::uint32_t kernel,
              Pool pool) {
    std::size_t const half = kernel / 2;
    bool const few = kernel <= kSweepKernelMax;
    if (pool == Pool::Max) {
        constexpr float kNothing = -std::numeric_limits<float>::infinity();
        if (few)
            sweep(scores, out, half, larger<float>);
        else
            scan(scores, out, half, kNothing, larger<float>);
        return;
    }
    if (few)
        sweep(scores, out, half, std::plus<float>());
    else
        scan(scores, out, half, 0.0, std::plus<double>());
    for (float& value : out)
        value /= static_cast<float>(kernel);
}

}  // namespace

Result<void> pool(PoolArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    if (args.scores.empty()) return {};
    workers.for_each(args.heads, [&](std::size_t head, std::size_t /*worker*/) {
        pool_row(args.scores.subspan(head * args.tokens, args.tokens),
                 args.out.subspan(head * args.tokens, args.tokens), args.kernel, args.pool);
    });
    return {};
}

}  // namespace dkv::cpu
