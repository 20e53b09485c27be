// Short windows from a tile in shared memory, joined element by element as a CPU does; long ones
// by doubling: joins of 2, 4, 8, … neighbours, of which a window is a few, in log2(kernel) passes.
// No running sum: an output must forget a NaN or an infinity that its window has passed.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::uint32_t kTileTokens = 1024;
constexpr std::uint32_t kShortKernelMax = 31;  // As on a CPU: the same additions, the same bits.
constexpr std::size_t kScratchMax = std::size_t{256} << 20U;

struct MaxJoin {
    using Value = float;
    static __device__ __forceinline__ float nothing() { return __int_as_float(0xff800000); }
    /// The larger one, the first of equals; NaN if either is.
    static __device__ __forceinline__ float join(float a, float b) {
        return b > a || b != b ? b : a;
    }
    static __device__ __forceinline__ float finish(float value, std::uint32_t) { return value; }
};

/// Sums: short ones in f32, in order; long ones in f64.
template <class Sum>
struct AvgJoin {
    using Value = Sum;
    static __device__ __forceinline__ Sum nothing() { return 0; }
    static __device__ __forceinline__ Sum join(Sum a, Sum b) { return a + b; }
    static __device__ __forceinline__ float finish(Sum value, std::uint32_t kernel) {
        return static_cast<float>(value) / static_cast<float>(kernel);
    }
};

// One block writes 1024 neighbours of one head.
//
//   scores  [heads, tokens]   read; a tile's edges twice
//   out     [heads, tokens]   written
template <class Join>
DKV_KERNEL void __launch_bounds__(kThreads) pool_short_kernel(float const* __restrict__ scores,
                                                              float* __restrict__ out,
                                                              std::uint32_t tokens,
                                                              std::uint32_t tiles,
                                                              std::uint32_t kernel) {
    // The tile begins where 16 bytes do, up to three elements before the first window.
    __shared__ __align__(16) float tile[kTileTokens + kShortKernelMax - 1 + 2 * 3 + 3];
    std::uint64_t const row = std::uint64_t{blockIdx.x / tiles} * tokens;
    std::int64_t const begin = std::int64_t{blockIdx.x % tiles} * kTileTokens;
    std::int64_t const first = begin - kernel / 2;
    auto const place = reinterpret_cast<std::uintptr_t>(scores + row) / sizeof(float);
    auto const before = static_cast<unsigned>((place + static_cast<std::uint64_t>(first)) % 4);
    unsigned const count = before + kTileTokens + kernel - 1;
    for (unsigned i = 4 * threadIdx.x; i < count; i += 4 * kThreads) {
        std::int64_t const token = first - before + i;
        float4 four{Join::nothing(), Join::nothing(), Join::nothing(), Join::nothing()};
        if (token >= 0 && token + 4 <= tokens) {
            four = *reinterpret_cast<float4 const*>(scores + row + token);
        } else {
            if (token >= 0 && token < tokens) four.x = scores[row + token];
            if (token + 1 >= 0 && token + 1 < tokens) four.y = scores[row + token + 1];
            if (token + 2 >= 0 && token + 2 < tokens) four.z = scores[row + token + 2];
            if (token + 3 >= 0 && token + 3 < tokens) four.w = scores[row + token + 3];
        }
        *reinterpret_cast<float4*>(tile + i) = four;
    }
    float const* const windows = tile + before;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < kTileTokens && begin + i < tokens; i += kThreads) {
        float joined = windows[i];
        for (unsigned next = 1; next < kernel; ++next)
            joined = Join::join(joined, windows[i + next]);
        out[row + static_cast<std::uint64_t>(begin) + i] = Join::finish(joined, kernel);
    }
}

/// Some heads of a long pool. Positions count from `half` before the first token.
template <class Value>
struct Long {
    float const* scores;  // [heads, tokens]
    Value* joined;        // [heads, tokens]: each window's beginning.
    std::uint32_t tokens;
    std::uint32_t half;
    std::uint64_t positions;  // tokens + 2 * half
    std::uint64_t heads;
};

template <class Join>
DKV_KERNEL void __launch_bounds__(kThreads)
    pool_begin_kernel(Long<typename Join::Value> args, typename Join::Value* level) {
    std::uint64_t const count = args.heads * args.positions;
    std::uint64_t const step = std::uint64_t{gridDim.x} * kThreads;
    for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
         i += step) {
        std::uint64_t const head = i / args.positions;
        std::uint64_t const at = i % args.positions;
        bool const inside = at >= args.half && at - args.half < args.tokens;
        typename Join::Value const value =
            inside ? static_cast<typename Join::Value>(
                         args.scores[head * args.tokens + (at - args.half)])
                   : Join::nothing();
        level[i] = value;
        if (at < args.tokens) args.joined[head * args.tokens + at] = value;
    }
}

// level[at] is the join of the `width` positions from `at` on. Writes those of 2 * width, and adds
// them to the windows that are joined up to `done` positions where the kernel has that bit.
template <class Join>
DKV_KERNEL void __launch_bounds__(kThreads)
    pool_double_kernel(Long<typename Join::Value> args,
                       typename Join::Value const* __restrict__ level,
                       typename Join::Value* __restrict__ next,
                       std::uint64_t width,
                       std::uint64_t done,
                       bool adds) {
    std::uint64_t const count = args.heads * args.positions;
    std::uint64_t const step = std::uint64_t{gridDim.x} * kThreads;
    for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
         i += step) {
        std::uint64_t const head = i / args.positions;
        std::uint64_t const at = i % args.positions;
        auto const pair = [&](std::uint64_t from) {
            typename Join::Value const* const row = level + head * args.positions;
            return from + width < args.positions ? Join::join(row[from], row[from + width])
                                                 : row[from];
        };
        next[i] = pair(at);
        if (!adds || at >= args.tokens) continue;
        typename Join::Value& window = args.joined[head * args.tokens + at];
        window = Join::join(window, pair(at + done));
    }
}

template <class Join>
DKV_KERNEL void __launch_bounds__(kThreads)
    pool_finish_kernel(Long<typename Join::Value> args, float* out, std::uint32_t kernel) {
    std::uint64_t const count = args.heads * args.tokens;
    std::uint64_t const step = std::uint64_t{gridDim.x} * kThreads;
    for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step)
        out[i] = Join::finish(args.joined[i], kernel);
}

template <class Join>
Result<void> pool_short(PoolArgs const& args, Queue& queue) {
    std::uint32_t const tiles = (args.tokens - 1) / kTileTokens + 1;
    unsigned const grid = DKV_TRY(grid_of(std::uint64_t{args.heads} * tiles));
    return launch(pool_short_kernel<Join>, grid, kThreads, 0, queue.stream(), args.scores.data(),
                  args.out.data(), args.tokens, tiles, args.kernel);
}

template <class Join>
Result<void> pool_long(PoolArgs const& args, Queue& queue) {
    using Value = typename Join::Value;
    // What is farther off than the row is long is outside it in every window.
    std::uint32_t const half = std::min(args.kernel / 2, args.tokens);
    std::uint64_t const kernel = 2 * std::uint64_t{half} + 1;
    std::uint64_t const positions = args.tokens + 2 * std::uint64_t{half};
    std::uint64_t const head_bytes = (2 * positions + args.tokens) * sizeof(Value);
    std::uint64_t const at_once =
        std::clamp<std::uint64_t>(kScratchMax / head_bytes, 1, args.heads);
    Value* level = DKV_TRY(queue.scratch<Value>(at_once * positions));
    Value* next = DKV_TRY(queue.scratch<Value>(at_once * positions));
    Value* const joined = DKV_TRY(queue.scratch<Value>(at_once * args.tokens));

    for (std::uint64_t head = 0; head < args.heads; head += at_once) {
        std::uint64_t const heads = std::min<std::uint64_t>(at_once, args.heads - head);
        Long<Value> const some{
            args.scores.data() + head * args.tokens, joined, args.tokens, half, positions, heads};
        constexpr std::uint64_t kBlocksMax = 1U << 16U;  // Each takes elements in turns.
        auto const grid =
            static_cast<unsigned>(std::min((heads * positions - 1) / kThreads + 1, kBlocksMax));
        DKV_TRY(launch(pool_begin_kernel<Join>, grid, kThreads, 0, queue.stream(), some, level));
        std::uint64_t done = 1;  // Odd: the lowest bit is always there.
        for (std::uint64_t width = 1; 2 * width <= kernel; width *= 2) {
            bool const adds = (kernel & 2 * width) != 0;
            DKV_TRY(launch(pool_double_kernel<Join>, grid, kThreads, 0, queue.stream(), some,
                           static_cast<Value const*>(level), next, width, done, adds));
            if (adds) done += 2 * width;
            std::swap(level, next);
        }
        DKV_TRY(launch(pool_finish_kernel<Join>, grid, kThreads, 0, queue.stream(), some,
                       args.out.data() + head * args.tokens, args.kernel));
    }
    return {};
}

}  // namespace

Result<void> pool(PoolArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.out.empty()) return {};
    queue.begin();
    bool const is_short = args.kernel <= kShortKernelMax;
    if (args.pool == Pool::Max)
        return is_short ? pool_short<MaxJoin>(args, queue) : pool_long<MaxJoin>(args, queue);
    return is_short ? pool_short<AvgJoin<float>>(args, queue)
                    : pool_long<AvgJoin<double>>(args, queue);
}

}  // namespace dkv::cuda
