// What select and tally share: scores as integers that sort the same way, counted digit by digit.
// For .cu files. Every count is an integer, so the order in which blocks run changes no bit.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace dkv::cuda {

inline constexpr unsigned kRadixThreads = 256;
inline constexpr unsigned kRadixWarps = kRadixThreads / kWarpLanes;
inline constexpr unsigned kRadixPasses = 3;
inline constexpr unsigned kRadixLoads = 4;    // Of 16 bytes, under way per thread.
inline constexpr unsigned kRadixBins = 2048;  // Of the digits below, the widest.

/// A key's digits, most significant first: 11, 11 and 10 bits.
template <unsigned kPass>
struct RadixDigit {
    static constexpr unsigned shift = kPass == 0 ? 21 : kPass == 1 ? 10 : 0;
    static constexpr unsigned bins = kPass == 2 ? 1024 : 2048;
    static __device__ __forceinline__ unsigned of(std::uint32_t key) {
        return (key >> shift) & (bins - 1);
    }
};

/// key(a) > key(b) exactly when a > b. -0 and 0 share a key; NaN is 0, below -inf.
__device__ __forceinline__ std::uint32_t radix_key(float score) {
    std::uint32_t const bits = __float_as_uint(score + 0.0F);  // -0 + 0 is 0.
    std::uint32_t const flip = (bits >> 31U) != 0 ? 0xffffffffU : 0x80000000U;
    return score == score ? bits ^ flip : 0U;
}

/// The rank-th largest key (rank from 1), as far as its digits are known; the others are 0.
struct Threshold {
    std::uint32_t key;
    std::uint64_t rank;  ///< Among the keys that share the digits known so far.
};

/// A range of a row's elements, met by the block's threads four at a time: thread t has those at
/// first + 4 * (t + i * threads). `first` is where 16 bytes begin, at or before `begin`.
struct RadixRange {
    float const* row;
    std::int64_t first;
    std::int64_t begin;
    std::int64_t end;
};

/// Chunk `chunk` of a row of `tokens`. Chunks begin where 16 bytes do, whatever the row's address.
__device__ __forceinline__ RadixRange radix_range(float const* row,
                                                  std::uint32_t tokens,
                                                  std::uint32_t chunk,
                                                  std::uint32_t chunk_tokens) {
    auto const skew =
        static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(float) % 4);
    std::int64_t const first = std::int64_t{chunk} * chunk_tokens - skew;
    std::int64_t const end = first + chunk_tokens;
    return {row, first, first < 0 ? 0 : first, end < tokens ? end : tokens};
}

/// Chunks that cover a row wherever it begins: three elements may come before the first 16 bytes.
inline std::uint32_t radix_chunks(std::uint32_t tokens, std::uint32_t chunk_tokens) {
    return static_cast<std::uint32_t>((std::uint64_t{tokens} + 3 + chunk_tokens - 1) /
                                      chunk_tokens);
}

/// Up to four neighbours; `valid` says which of them are in the range.
struct FourScores {
    float score[4];
    unsigned valid;
};

/// Four neighbours that are all in the range, in one load.
__device__ __forceinline__ FourScores load_whole(RadixRange const& range, std::int64_t at) {
    // __ldg: of a pointer that was itself loaded the compiler does not know the memory.
    float4 const all = __ldg(reinterpret_cast<float4 const*>(range.row + at));
    return {{all.x, all.y, all.z, all.w}, 0xfU};
}

__device__ __forceinline__ FourScores load_four(RadixRange const& range, std::int64_t at) {
    if (at >= range.begin && at + 4 <= range.end) return load_whole(range, at);
    FourScores four{{0, 0, 0, 0}, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (at + i < range.begin || at + i >= range.end) continue;
        four.score[i] = __ldg(range.row + at + i);
        four.valid |= 1U << static_cast<unsigned>(i);
    }
    return four;
}

/// body(four, at) for the thread's share of the range, kRadixLoads loads ahead. All threads go
/// round together, so that the body may synchronize.
template <class Body>
__device__ __forceinline__ void for_each_four(RadixRange const& range, Body const& body) {
    constexpr std::int64_t kStep = 4 * kRadixThreads;
    for (std::int64_t tile = range.first; tile < range.end; tile += kRadixLoads * kStep) {
        std::int64_t const at = tile + 4 * threadIdx.x;
        FourScores fours[kRadixLoads];
        // Of the whole block, so that nothing stands between one load and the next.
        bool const whole = tile >= range.begin && tile + kRadixLoads * kStep <= range.end;
#pragma unroll
        for (unsigned i = 0; i < kRadixLoads; ++i)
            if (whole) fours[i] = load_whole(range, at + i * kStep);
#pragma unroll
        for (unsigned i = 0; i < kRadixLoads; ++i)
            if (!whole) fours[i] = load_four(range, at + i * kStep);
#pragma unroll
        for (unsigned i = 0; i < kRadixLoads; ++i)
            if (tile + i * kStep < range.end) body(fours[i], at + i * kStep);
    }
}

/// Σ of `value` over the threads before this one; the block's whole sum to all in `total`. All
/// kRadixThreads threads take part. `sums` is [kRadixWarps], of shared memory.
template <class Count>
__device__ __forceinline__ Count scan_block(Count value, Count* sums, Count& total) {
    unsigned const lane = threadIdx.x % kWarpLanes;
    unsigned const warp = threadIdx.x / kWarpLanes;
    Count inclusive = value;
    for (unsigned step = 1; step < kWarpLanes; step *= 2) {
        Count const other = __shfl_up_sync(kAllLanes, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    __syncthreads();  // Who still reads the sums of the scan before this one.
    if (lane == kWarpLanes - 1) sums[warp] = inclusive;
    __syncthreads();
    Count before = 0;
    total = 0;
    for (unsigned i = 0; i < kRadixWarps; ++i) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    return before + inclusive - value;
}

/// The threshold with the digit of kPass known, from that digit's histogram (global memory,
/// [RadixDigit<kPass>::bins]). All threads take part and get the result. rank must be in
/// [1, keys counted].
template <unsigned kPass, class Count>
__device__ __forceinline__ Threshold descend(Threshold threshold, Count const* histogram) {
    constexpr unsigned kPerThread = RadixDigit<kPass>::bins / kRadixThreads;
    __shared__ std::uint64_t sums[kRadixWarps];
    __shared__ Threshold found;
    // Thread 0 has the largest bins.
    unsigned const top = RadixDigit<kPass>::bins - 1 - threadIdx.x * kPerThread;
    std::uint64_t counts[kPerThread];
    std::uint64_t mine = 0;
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i) {
        counts[i] = histogram[top - i];
        mine += counts[i];
    }
    std::uint64_t total = 0;
    std::uint64_t above = scan_block(mine, sums, total);
    if (above < threshold.rank && threshold.rank <= above + mine) {
        bool open = true;
#pragma unroll
        for (unsigned i = 0; i < kPerThread; ++i) {
            if (open && threshold.rank <= above + counts[i]) {
                open = false;
                found.key = threshold.key | (top - i) << RadixDigit<kPass>::shift;
                found.rank = threshold.rank - above;
            }
            above += counts[i];
        }
    }
    __syncthreads();
    return found;
}

/// Whether a key shares the digits that come before kPass's.
template <unsigned kPass>
__device__ __forceinline__ bool shares_digits(std::uint32_t key, std::uint32_t threshold) {
    if constexpr (kPass == 0)
        return true;
    else
        return (key ^ threshold) >> RadixDigit<kPass - 1>::shift == 0;
}

/// Empties the block's histogram [kRadixBins], of shared memory.
__device__ __forceinline__ void clear_bins(unsigned* bins) {
    for (unsigned bin = threadIdx.x; bin < kRadixBins; bin += kRadixThreads)
        bins[bin] = 0;
    __syncthreads();
}

/// Adds the block's histogram to the one in global memory.
template <class Count>
__device__ __forceinline__ void flush_bins(unsigned const* bins, unsigned count, Count* histogram) {
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < count; bin += kRadixThreads)
        if (bins[bin] != 0) atomicAdd(&histogram[bin], static_cast<Count>(bins[bin]));
}

}  // namespace dkv::cuda
