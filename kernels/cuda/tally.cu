// The total-th largest score of all layers by a radix search, then each row's share: four passes
// over all scores, of which nothing but histograms and one pair of counts per row is written.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/select_radix.h"

namespace dkv::cuda {
namespace {

using Count = unsigned long long;  // What atomicAdd takes.

constexpr std::uint32_t kChunkTokens = 8192;
constexpr std::uint64_t kBlocksMax = 2048;  // Each flushes a histogram: no more than fill a GPU.

struct Layer {
    float const* scores;  // [heads, tokens]
    float scale;
};

/// One head of one layer, of which there are layers * heads: those above the threshold, and equal.
struct RowCount {
    Count above;
    Count equal;
};

struct Shape {
    std::uint64_t rows;
    std::uint32_t heads;
    std::uint32_t tokens;
    std::uint32_t chunks;  // Per row.
    std::uint32_t skip;
    std::uint64_t total;
};

struct State {
    Layer const* layers;
    Count* histograms;      // [kRadixPasses, kRadixBins]
    Threshold* thresholds;  // [kRadixPasses]: after each digit.
    RowCount* row_counts;   // [rows]
    std::uint64_t* counts;  // [rows]: the result.
};

/// The threshold after the digit of kPass; block 0 leaves it for later kernels.
template <unsigned kPass>
__device__ __forceinline__ Threshold next_threshold(Shape const& shape, State const& state) {
    Threshold threshold{0, shape.total};
    if constexpr (kPass > 0) threshold = state.thresholds[kPass - 1];
    threshold = descend<kPass>(threshold, state.histograms + kPass * kRadixBins);
    if (blockIdx.x == 0 && threadIdx.x == 0) state.thresholds[kPass] = threshold;
    return threshold;
}

/// Calls body(key) for every key of item `item`: a chunk of a row.
template <class Body>
__device__ __forceinline__ void for_each_key(Shape const& shape,
                                             State const& state,
                                             std::uint64_t item,
                                             Body body) {
    std::uint64_t const row = item / shape.chunks;
    Layer const layer = state.layers[row / shape.heads];
    RadixRange const range =
        radix_range(layer.scores + row % shape.heads * shape.tokens, shape.tokens,
                    static_cast<std::uint32_t>(item % shape.chunks), kChunkTokens);
    for_each_four(range, [&](FourScores const& four, std::int64_t at) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            if ((four.valid >> i & 1U) == 0) continue;
            // Rounded by itself: fused with the key's own addition, a tiny negative one were -0.
            float const scaled = __fmul_rn(four.score[i], layer.scale);
            body(radix_key(at + i < shape.skip ? 0.0F : scaled));
        }
    });
}

// Blocks take chunks in turns and count the digits of those keys that share the threshold's digits
// so far.
template <unsigned kPass>
DKV_KERNEL void __launch_bounds__(kRadixThreads) tally_histogram_kernel(Shape shape, State state) {
    __shared__ unsigned bins[kRadixBins];
    clear_bins(bins);
    Threshold threshold{0, 0};
    if constexpr (kPass > 0) threshold = next_threshold<kPass - 1>(shape, state);
    std::uint64_t const items = shape.rows * shape.chunks;
    for (std::uint64_t item = blockIdx.x; item < items; item += gridDim.x)
        for_each_key(shape, state, item, [&](std::uint32_t key) {
            if (shares_digits<kPass>(key, threshold.key))
                atomicAdd(&bins[RadixDigit<kPass>::of(key)], 1U);
        });
    flush_bins(bins, RadixDigit<kPass>::bins, state.histograms + kPass * kRadixBins);
}

// Blocks take chunks in turns and add each to its row's counts.
DKV_KERNEL void __launch_bounds__(kRadixThreads) tally_rows_kernel(Shape shape, State state) {
    __shared__ std::uint64_t sums[kRadixWarps];
    std::uint32_t const threshold = next_threshold<2>(shape, state).key;
    std::uint64_t const items = shape.rows * shape.chunks;
    for (std::uint64_t item = blockIdx.x; item < items; item += gridDim.x) {
        std::uint64_t count = 0;  // Above in the upper half, equal in the lower.
        for_each_key(shape, state, item, [&](std::uint32_t key) {
            count += static_cast<std::uint64_t>(key > threshold) << 32U;
            count += static_cast<std::uint64_t>(key == threshold);
        });
        std::uint64_t total = 0;
        scan_block(count, sums, total);
        if (threadIdx.x != 0) continue;
        RowCount& row = state.row_counts[item / shape.chunks];
        if (total >> 32U != 0) atomicAdd(&row.above, static_cast<Count>(total >> 32U));
        if ((total & 0xffffffffU) != 0)
            atomicAdd(&row.equal, static_cast<Count>(total & 0xffffffffU));
    }
}

// One block hands the threshold's equals to the rows in their order, layer after layer.
DKV_KERNEL void __launch_bounds__(kRadixThreads) tally_ties_kernel(Shape shape, State state) {
    __shared__ std::uint64_t sums[kRadixWarps];
    std::uint64_t rest = state.thresholds[kRadixPasses - 1].rank;
    for (std::uint64_t first = 0; first < shape.rows; first += kRadixThreads) {
        std::uint64_t const row = first + threadIdx.x;
        RowCount const own = row < shape.rows ? state.row_counts[row] : RowCount{0, 0};
        std::uint64_t total = 0;
        std::uint64_t const before = scan_block(std::uint64_t{own.equal}, sums, total);
        std::uint64_t const left = before < rest ? rest - before : 0;
        if (row < shape.rows) state.counts[row] = own.above + (own.equal < left ? own.equal : left);
        rest = total < rest ? rest - total : 0;
    }
}

Result<void> run(Shape const& shape, State const& state, Queue& queue) {
    std::size_t const bins = std::size_t{kRadixPasses} * kRadixBins;
    DKV_CUDA_TRY(cudaMemsetAsync(state.histograms, 0, bins * sizeof(Count), queue.stream()));
    DKV_CUDA_TRY(
        cudaMemsetAsync(state.row_counts, 0, shape.rows * sizeof(RowCount), queue.stream()));
    auto const grid = static_cast<unsigned>(std::min(shape.rows * shape.chunks, kBlocksMax));
    auto const pass = [&](void (*kernel)(Shape, State), unsigned blocks) {
        return launch(kernel, blocks, kRadixThreads, 0, queue.stream(), shape, state);
    };
    DKV_TRY(pass(tally_histogram_kernel<0>, grid));
    DKV_TRY(pass(tally_histogram_kernel<1>, grid));
    DKV_TRY(pass(tally_histogram_kernel<2>, grid));
    DKV_TRY(pass(tally_rows_kernel, grid));
    return pass(tally_ties_kernel, 1);
}

}  // namespace

Result<void> tally(TallyArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.counts.empty()) return {};
    queue.begin();
    std::uint64_t const scores = std::uint64_t{args.counts.size()} * args.tokens;
    if (args.total == 0 || args.total >= scores) {
        // Through the stream all the same: an earlier tally's counts may be under way to the span.
        std::vector<std::uint64_t> const known(args.counts.size(),
                                               args.total == 0 ? 0 : args.tokens);
        auto const* const counts = DKV_TRY(queue.upload(std::span(known)));
        return queue.download_later(counts, args.counts);
    }
    std::vector<Layer> layers;
    layers.reserve(args.layers.size());
    for (std::size_t layer = 0; layer < args.layers.size(); ++layer)
        layers.push_back(
            {args.layers[layer].data(), args.scales.empty() ? 1.0F : args.scales[layer]});

    Shape const shape{args.counts.size(), args.heads,
                      args.tokens,        radix_chunks(args.tokens, kChunkTokens),
                      args.skip,          args.total};
    State state{};
    state.layers = DKV_TRY(queue.upload(std::span<Layer const>(layers)));
    state.histograms = DKV_TRY(queue.scratch<Count>(std::size_t{kRadixPasses} * kRadixBins));
    state.thresholds = DKV_TRY(queue.scratch<Threshold>(kRadixPasses));
    state.row_counts = DKV_TRY(queue.scratch<RowCount>(shape.rows));
    state.counts = DKV_TRY(queue.scratch<std::uint64_t>(shape.rows));
    DKV_TRY(run(shape, state, queue));
    return queue.download_later(static_cast<std::uint64_t const*>(state.counts), args.counts);
}

}  // namespace dkv::cuda
