#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

// Which thread adds what, and in which order, depends on the shape alone: the same bits on every
// run and at every address.
constexpr unsigned kThreads = 256;
constexpr std::uint32_t kChunkTokens = 8192;

__device__ __forceinline__ double term(float score) {
    return score == score ? static_cast<double>(score) : 0.0;
}

// One block adds up one chunk of one head: thread t the tokens 4 t … 4 t + 3, then those 1024
// further on; then the threads' sums in pairs.
//
//   scores    [heads, tokens]   read
//   partials  [heads, chunks]   written
template <bool kWide>
DKV_KERNEL void __launch_bounds__(kThreads) sum_chunks_kernel(float const* __restrict__ scores,
                                                              std::uint32_t tokens,
                                                              std::uint32_t skip,
                                                              std::uint32_t chunks,
                                                              double* __restrict__ partials) {
    __shared__ double sums[kThreads];
    std::uint64_t const head = blockIdx.x / chunks;
    std::uint64_t const begin = std::uint64_t{blockIdx.x % chunks} * kChunkTokens;
    std::uint64_t const end = min(begin + kChunkTokens, std::uint64_t{tokens});
    float const* const row = scores + head * tokens;
    double sum = 0;
    for (std::uint64_t at = begin + 4 * threadIdx.x; at < end; at += 4 * kThreads) {
        float four[4] = {0, 0, 0, 0};
        if (kWide && at + 4 <= end) {
            float4 const all = *reinterpret_cast<float4 const*>(row + at);
            four[0] = all.x;
            four[1] = all.y;
            four[2] = all.z;
            four[3] = all.w;
        } else {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i)
                if (at + i < end) four[i] = row[at + i];
        }
#pragma unroll
        for (unsigned i = 0; i < 4; ++i)
            sum += at + i < skip ? 0.0 : term(four[i]);
    }
    sums[threadIdx.x] = sum;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partials[blockIdx.x] = sums[0];
}

// One thread adds up one head's chunks, in their order.
DKV_KERNEL void __launch_bounds__(kThreads) sum_heads_kernel(double const* __restrict__ partials,
                                                             std::uint32_t heads,
                                                             std::uint32_t chunks,
                                                             double* __restrict__ sums) {
    std::uint64_t const head = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (head >= heads) return;
    double sum = 0;
    for (std::uint32_t chunk = 0; chunk < chunks; ++chunk)
        sum += partials[head * chunks + chunk];
    sums[head] = sum;
}

}  // namespace

Result<void> sum(SumArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.sums.empty()) return {};
    queue.begin();
    // A head of no tokens has one chunk of nothing: its sum is 0 as any other's is what it is.
    std::uint32_t const chunks = args.tokens == 0 ? 1 : (args.tokens - 1) / kChunkTokens + 1;
    std::uint64_t const items = std::uint64_t{args.heads} * chunks;
    unsigned const grid = DKV_TRY(grid_of(items));
    double* const partials = DKV_TRY(queue.scratch<double>(items));
    double* const sums = DKV_TRY(queue.scratch<double>(args.heads));
    bool const wide = args.tokens % 4 == 0 &&
                      reinterpret_cast<std::uintptr_t>(args.scores.data()) % sizeof(float4) == 0;
    DKV_TRY(launch(wide ? sum_chunks_kernel<true> : sum_chunks_kernel<false>, grid, kThreads, 0,
                   queue.stream(), args.scores.data(), args.tokens, args.skip, chunks, partials));
    unsigned const head_blocks = DKV_TRY(grid_of((std::uint64_t{args.heads} - 1) / kThreads + 1));
    DKV_TRY(launch(sum_heads_kernel, head_blocks, kThreads, 0, queue.stream(),
                   static_cast<double const*>(partials), args.heads, chunks, sums));
    return queue.download_later(static_cast<double const*>(sums), args.sums);
}

}  // namespace dkv::cuda
