// The keep-th largest key of each head by a radix search, the tokens at or above it in id order,
// then the sort of those (select_sort.h). Scores are read five times, from the L2 cache where they
// fit: three histograms, a count per chunk, and the picking itself.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/select_radix.h"
#include "kernels/cuda/select_sort.h"

namespace dkv::cuda {
namespace {

constexpr std::uint32_t kChunkLeast = 4096;
constexpr std::uint32_t kChunksMax = kRadixThreads;  // A thread per chunk adds up those before.

/// How many of a chunk's keys are above the threshold, and equal to it.
struct ChunkCount {
    std::uint32_t above;
    std::uint32_t equal;
};

struct Shape {
    std::uint32_t tokens;
    std::uint32_t chunks;  // Per head.
    std::uint32_t chunk_tokens;
    std::uint32_t heads;
};

/// What the kernels hand on to each other, in scratch memory.
struct State {
    unsigned* histograms;   // [kRadixPasses, heads, kRadixBins]
    Threshold* thresholds;  // [kRadixPasses, heads]: after each digit.
    ChunkCount* counts;     // [heads, chunks]
    SelectEntry* entries;   // [Σ keep]
    SelectEntry* merged;    // [Σ keep], or null
    SelectHead const* heads;
};

/// The threshold after the digit of kPass, from its histogram; chunk 0 leaves it for later kernels.
template <unsigned kPass>
__device__ __forceinline__ Threshold
next_threshold(Shape const& shape, State const& state, std::uint32_t head, std::uint32_t chunk) {
    Threshold threshold{0, state.heads[head].keep};
    if constexpr (kPass > 0)
        threshold = state.thresholds[std::uint64_t{kPass - 1} * shape.heads + head];
    std::uint64_t const at = std::uint64_t{kPass} * shape.heads + head;
    threshold = descend<kPass>(threshold, state.histograms + at * kRadixBins);
    if (chunk == 0 && threadIdx.x == 0) state.thresholds[at] = threshold;
    return threshold;
}

// One block counts the digits of one chunk, of those keys that share the threshold's digits so far.
template <unsigned kPass>
DKV_KERNEL void __launch_bounds__(kRadixThreads)
    select_histogram_kernel(float const* __restrict__ scores, Shape shape, State state) {
    __shared__ unsigned bins[kRadixBins];
    std::uint32_t const head = blockIdx.x / shape.chunks;
    std::uint32_t const chunk = blockIdx.x % shape.chunks;
    if (state.heads[head].keep == 0) return;
    clear_bins(bins);
    Threshold threshold{0, 0};
    if constexpr (kPass > 0) threshold = next_threshold<kPass - 1>(shape, state, head, chunk);

    RadixRange const range = radix_range(scores + std::uint64_t{head} * shape.tokens, shape.tokens,
                                         chunk, shape.chunk_tokens);
    for_each_four(range, [&](FourScores const& four, std::int64_t) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            std::uint32_t const key = radix_key(four.score[i]);
            if ((four.valid >> i & 1U) != 0 && shares_digits<kPass>(key, threshold.key))
                atomicAdd(&bins[RadixDigit<kPass>::of(key)], 1U);
        }
    });
    flush_bins(bins, RadixDigit<kPass>::bins,
               state.histograms + (std::uint64_t{kPass} * shape.heads + head) * kRadixBins);
}

// One block counts its chunk's keys above and equal to the threshold.
DKV_KERNEL void __launch_bounds__(kRadixThreads)
    select_count_kernel(float const* __restrict__ scores, Shape shape, State state) {
    __shared__ std::uint64_t sums[kRadixWarps];
    std::uint32_t const head = blockIdx.x / shape.chunks;
    std::uint32_t const chunk = blockIdx.x % shape.chunks;
    if (state.heads[head].keep == 0) return;
    std::uint32_t const threshold = next_threshold<2>(shape, state, head, chunk).key;

    RadixRange const range = radix_range(scores + std::uint64_t{head} * shape.tokens, shape.tokens,
                                         chunk, shape.chunk_tokens);
    std::uint64_t count = 0;  // Above in the upper half, equal in the lower.
    for_each_four(range, [&](FourScores const& four, std::int64_t) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            std::uint32_t const key = radix_key(four.score[i]);
            if ((four.valid >> i & 1U) == 0) continue;
            count += static_cast<std::uint64_t>(key > threshold) << 32U;
            count += static_cast<std::uint64_t>(key == threshold);
        }
    });
    std::uint64_t total = 0;
    scan_block(count, sums, total);
    if (threadIdx.x == 0)
        state.counts[std::uint64_t{head} * shape.chunks + chunk] = {
            static_cast<std::uint32_t>(total >> 32U), static_cast<std::uint32_t>(total)};
}

// One block writes the entries of its chunk's picks behind those of the chunks before: the keys
// above the threshold, and the first `rank` of its equals.
DKV_KERNEL void __launch_bounds__(kRadixThreads)
    select_pick_kernel(float const* __restrict__ scores, Shape shape, State state) {
    __shared__ std::uint64_t sums[kRadixWarps];
    __shared__ std::uint32_t tile_sums[kRadixWarps];
    std::uint32_t const head = blockIdx.x / shape.chunks;
    std::uint32_t const chunk = blockIdx.x % shape.chunks;
    SelectHead const own = state.heads[head];
    if (own.keep == 0) return;
    Threshold const threshold = state.thresholds[std::uint64_t{2} * shape.heads + head];
    auto const rank = static_cast<std::uint32_t>(threshold.rank);

    ChunkCount before{0, 0};
    if (threadIdx.x < chunk)
        before = state.counts[std::uint64_t{head} * shape.chunks + threadIdx.x];
    std::uint64_t total = 0;
    scan_block(std::uint64_t{before.above} << 32U | before.equal, sums, total);
    auto above = static_cast<std::uint32_t>(total >> 32U);
    auto equal = static_cast<std::uint32_t>(total);

    RadixRange const range = radix_range(scores + std::uint64_t{head} * shape.tokens, shape.tokens,
                                         chunk, shape.chunk_tokens);
    for_each_four(range, [&](FourScores const& four, std::int64_t at) {
        std::uint32_t keys[4];
        std::uint32_t mine = 0;  // Above in the upper half, equal in the lower: 1024 at most.
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            keys[i] = radix_key(four.score[i]);
            if ((four.valid >> i & 1U) == 0) continue;
            mine += (keys[i] > threshold.key ? 1U << 16U : 0U) + (keys[i] == threshold.key ? 1 : 0);
        }
        std::uint32_t in_tile = 0;
        std::uint32_t const prior = scan_block(mine, tile_sums, in_tile);
        std::uint32_t above_before = above + (prior >> 16U);
        std::uint32_t equal_before = equal + (prior & 0xffffU);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            if ((four.valid >> i & 1U) == 0) continue;
            bool const is_above = keys[i] > threshold.key;
            bool const is_equal = keys[i] == threshold.key;
            if (is_above || (is_equal && equal_before < rank))
                state.entries[own.first + above_before + min(equal_before, rank)] =
                    select_entry(keys[i], static_cast<std::uint32_t>(at + i));
            above_before += is_above ? 1 : 0;
            equal_before += is_equal ? 1 : 0;
        }
        above += in_tile >> 16U;
        equal += in_tile & 0xffffU;
    });
}

/// Chunks of a row that keep many multiprocessors busy, and few enough to be added up by a block.
Shape shape_of(SelectArgs const& args) {
    std::uint64_t const least = (std::uint64_t{args.tokens} + 3) / kChunksMax + 1;
    std::uint64_t const chunk = (least + kChunkLeast - 1) / kChunkLeast * kChunkLeast;
    auto const chunk_tokens = static_cast<std::uint32_t>(chunk);
    return {args.tokens, radix_chunks(args.tokens, chunk_tokens), chunk_tokens,
            static_cast<std::uint32_t>(args.keep.size())};
}

/// Entries in id order to ids in rank order.
Result<void> sort(SelectArgs const& args,
                  State const& state,
                  std::uint32_t keep_max,
                  Queue& queue) {
    std::uint32_t const tiles = (keep_max + kSortTile - 1) / kSortTile;
    unsigned const grid = DKV_TRY(grid_of(std::uint64_t{tiles} * args.keep.size()));
    std::int32_t* const ids = args.ids.data();
    DKV_TRY(launch(sort_tiles_kernel, grid, kSortThreads, 0, queue.stream(), state.entries,
                   state.heads, tiles, tiles == 1 ? ids : nullptr));
    SelectEntry* from = state.entries;
    SelectEntry* to = state.merged;
    for (std::uint64_t width = kSortTile; width < keep_max; width *= 2) {
        bool const last = 2 * width >= keep_max;
        DKV_TRY(launch(merge_runs_kernel, grid, kSortThreads, 0, queue.stream(), from, to,
                       last ? ids : nullptr, state.heads, tiles, width));
        std::swap(from, to);
    }
    return {};
}

}  // namespace

Result<void> select(SelectArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.ids.empty()) return {};
    queue.begin();
    std::vector<SelectHead> heads;
    heads.reserve(args.keep.size());
    std::uint64_t first = 0;
    for (std::uint32_t const keep : args.keep) {
        heads.push_back({first, keep});
        first += keep;
    }
    std::uint32_t const keep_max = *std::max_element(args.keep.begin(), args.keep.end());
    Shape const shape = shape_of(args);
    std::size_t const passes = std::size_t{kRadixPasses} * shape.heads;
    std::uint64_t const items = std::uint64_t{shape.heads} * shape.chunks;
    unsigned const grid = DKV_TRY(grid_of(items));

    State state{};
    state.heads = DKV_TRY(queue.upload(std::span<SelectHead const>(heads)));
    state.histograms = DKV_TRY(queue.scratch<unsigned>(passes * kRadixBins));
    state.thresholds = DKV_TRY(queue.scratch<Threshold>(passes));
    state.counts = DKV_TRY(queue.scratch<ChunkCount>(items));
    state.entries = DKV_TRY(queue.scratch<SelectEntry>(args.ids.size()));
    if (keep_max > kSortTile) state.merged = DKV_TRY(queue.scratch<SelectEntry>(args.ids.size()));
    DKV_CUDA_TRY(cudaMemsetAsync(state.histograms, 0, passes * kRadixBins * sizeof(unsigned),
                                 queue.stream()));

    float const* const scores = args.scores.data();
    auto const run = [&](void (*kernel)(float const*, Shape, State)) {
        return launch(kernel, grid, kRadixThreads, 0, queue.stream(), scores, shape, state);
    };
    DKV_TRY(run(select_histogram_kernel<0>));
    DKV_TRY(run(select_histogram_kernel<1>));
    DKV_TRY(run(select_histogram_kernel<2>));
    DKV_TRY(run(select_count_kernel));
    DKV_TRY(run(select_pick_kernel));
    return sort(args, state, keep_max, queue);
}

}  // namespace dkv::cuda
