// The second half of select: picked tokens into rank order. A merge sort of 64-bit entries, the
// inverted key above the id: ascending is best first, ties to the lower id, and no two are equal.
// For .cu files.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace dkv::cuda {

using SelectEntry = unsigned long long;

inline constexpr unsigned kSortThreads = 256;
inline constexpr unsigned kSortTile = 2048;  // Entries of a block: 16 KiB.
inline constexpr unsigned kSortPerThread = kSortTile / kSortThreads;

/// Where a head's picks are among all heads' picks.
struct SelectHead {
    std::uint64_t first;
    std::uint32_t keep;
};

__device__ __forceinline__ SelectEntry select_entry(std::uint32_t key, std::uint32_t id) {
    return static_cast<SelectEntry>(~key) << 32U | id;
}

__device__ __forceinline__ std::int32_t entry_id(SelectEntry entry) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(entry));
}

// One block sorts one tile of one head, in shared memory (bitonic). With `ids`, a head has one tile
// at most, and its ids are the result; else the tiles are merged later.
//
//   entries  [Σ keep]   read, written in place
//   ids      [Σ keep]   written, or null
DKV_KERNEL void __launch_bounds__(kSortThreads)
    sort_tiles_kernel(SelectEntry* entries,
                      SelectHead const* __restrict__ heads,
                      std::uint32_t tiles,
                      std::int32_t* ids) {
    __shared__ SelectEntry tile[kSortTile];
    SelectHead const head = heads[blockIdx.x / tiles];
    std::uint32_t const begin = blockIdx.x % tiles * kSortTile;
    if (begin >= head.keep) return;
    unsigned const count = min(kSortTile, head.keep - begin);
    unsigned size_max = 2;  // A power of two: no more is sorted than there is.
    while (size_max < count)
        size_max *= 2;
    SelectEntry* const own = entries + head.first + begin;
    for (unsigned i = threadIdx.x; i < size_max; i += kSortThreads)
        tile[i] = i < count ? own[i] : ~SelectEntry{0};

    for (unsigned size = 2; size <= size_max; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (unsigned pair = threadIdx.x; pair < size_max / 2; pair += kSortThreads) {
                unsigned const low = 2 * pair - (pair & (stride - 1));
                unsigned const high = low + stride;
                SelectEntry const a = tile[low];
                SelectEntry const b = tile[high];
                if ((a > b) == ((low & size) == 0)) {
                    tile[low] = b;
                    tile[high] = a;
                }
            }
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += kSortThreads) {
        if (ids != nullptr)
            ids[head.first + begin + i] = entry_id(tile[i]);
        else
            own[i] = tile[i];
    }
}

/// How many of the first `count` entries of the merge of two sorted runs come from the first run.
__device__ __forceinline__ std::uint32_t merge_split(SelectEntry const* a,
                                                     std::uint32_t a_count,
                                                     SelectEntry const* b,
                                                     std::uint32_t b_count,
                                                     std::uint32_t count) {
    std::uint32_t low = count > b_count ? count - b_count : 0;
    std::uint32_t high = min(count, a_count);
    while (low < high) {
        std::uint32_t const middle = low + (high - low) / 2;
        if (a[middle] < b[count - 1 - middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// One block writes one tile of the merge of two neighbouring runs of `width` entries (merge path:
// Green, McColl, Bader 2012); thread t its entries [8 t, 8 t + 8).
//
//   from  [Σ keep]   runs of `width` in each head, the last one shorter; read
//   to    [Σ keep]   runs of 2 * width; written, when ids is null
//   ids   [Σ keep]   written, or null: the last merge's
DKV_KERNEL void __launch_bounds__(kSortThreads)
    merge_runs_kernel(SelectEntry const* __restrict__ from,
                      SelectEntry* __restrict__ to,
                      std::int32_t* __restrict__ ids,
                      SelectHead const* __restrict__ heads,
                      std::uint32_t tiles,
                      std::uint64_t width) {
    __shared__ SelectEntry tile[kSortTile];
    __shared__ std::uint32_t splits[2];
    SelectHead const head = heads[blockIdx.x / tiles];
    std::uint32_t const begin = blockIdx.x % tiles * kSortTile;
    if (begin >= head.keep) return;
    unsigned const count = min(kSortTile, head.keep - begin);

    // The pair of runs that this tile is of: widths are multiples of a tile.
    std::uint64_t const pair = begin / (2 * width) * (2 * width);
    auto const rest = static_cast<std::uint32_t>(head.keep - pair);
    auto const a_count = static_cast<std::uint32_t>(width < rest ? width : rest);
    auto const b_count =
        static_cast<std::uint32_t>(width < rest - a_count ? width : rest - a_count);
    SelectEntry const* const a = from + head.first + pair;
    SelectEntry const* const b = a + a_count;
    auto const diagonal = static_cast<std::uint32_t>(begin - pair);
    if (threadIdx.x < 2)
        splits[threadIdx.x] = merge_split(a, a_count, b, b_count, diagonal + threadIdx.x * count);
    __syncthreads();
    std::uint32_t const a_begin = splits[0];
    std::uint32_t const a_here = splits[1] - a_begin;
    std::uint32_t const b_begin = diagonal - a_begin;
    std::uint32_t const b_here = count - a_here;
    for (unsigned i = threadIdx.x; i < count; i += kSortThreads)
        tile[i] = i < a_here ? a[a_begin + i] : b[b_begin + (i - a_here)];
    __syncthreads();

    unsigned const mine = min(threadIdx.x * kSortPerThread, count);
    unsigned next_a = merge_split(tile, a_here, tile + a_here, b_here, mine);
    unsigned next_b = a_here + (mine - next_a);
    SelectEntry merged[kSortPerThread];
#pragma unroll
    for (unsigned i = 0; i < kSortPerThread; ++i) {
        bool const from_a = next_a < a_here && (next_b >= count || tile[next_a] < tile[next_b]);
        unsigned const at = from_a ? next_a++ : next_b++;
        merged[i] = tile[min(at, kSortTile - 1)];  // Past the end: not written below.
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < kSortPerThread; ++i)
        if (mine + i < count) tile[mine + i] = merged[i];
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += kSortThreads) {
        if (ids != nullptr)
            ids[head.first + begin + i] = entry_id(tile[i]);
        else
            to[head.first + begin + i] = tile[i];
    }
}

}  // namespace dkv::cuda
