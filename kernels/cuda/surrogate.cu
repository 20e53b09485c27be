// A block scores the tokens of one tile: a head's keys or values at a time are laid into shared
// memory, turned back there, and multiplied by the weights of the heads that the block scores. A
// lane has a token, a warp has heads; so weights are read by a whole warp at once.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/key_score_rows.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kTokens = kWarpLanes;
constexpr unsigned kWarps = kThreads / kWarpLanes;
constexpr unsigned kHeadsPerWarp = 4;
constexpr unsigned kHeads = kWarps * kHeadsPerWarp;  // That a block scores.
constexpr float kSquaresLeast = 0x1p-40F;

struct Shape {
    std::uint32_t heads;
    std::uint32_t tokens;
    std::uint32_t columns;  // Of scores.
    std::uint32_t head_dim;
    std::uint32_t pairs;
    bool interleaved;
    std::uint32_t tiles;  // Of tokens.
};

/// Turns the tile's keys back where they lie: each thread has pairs of its own.
__device__ __forceinline__ void turn_back(float* rows,
                                          Shape const& shape,
                                          std::uint32_t first,
                                          float const* __restrict__ turns) {
    std::uint32_t const pairs = shape.pairs;
    for (std::uint32_t i = threadIdx.x; i < kTokens * pairs; i += kThreads) {
        std::uint32_t const pair = i % pairs;
        std::uint32_t const token = first + i / pairs;
        float* const row = rows + i / pairs * (shape.head_dim + 1);
        float const* const inner = turns + token % kTurnBlock * 2 * std::uint64_t{pairs};
        std::uint32_t const block = min(token, shape.tokens - 1) / kTurnBlock;
        float const* const outer = turns + (kTurnBlock + block) * 2 * std::uint64_t{pairs};
        float const c = outer[pair] * inner[pair] - outer[pairs + pair] * inner[pairs + pair];
        float const s = outer[pairs + pair] * inner[pair] + outer[pair] * inner[pairs + pair];
        float& a = row[shape.interleaved ? 2 * pair : pair];
        float& b = row[shape.interleaved ? 2 * pair + 1 : pairs + pair];
        float const turned = a * c + b * s;
        b = b * c - a * s;
        a = turned;
    }
}

/// What a block works with.
struct Block {
    Shape const& shape;
    float const* __restrict__ weights;  // [heads, surrogate_features]
    float* rows;                        // [kTokens, head_dim + 1], shared
    std::uint32_t first;                // Token.
    std::uint32_t first_head;           // Of this warp.

    __device__ __forceinline__ std::uint64_t features() const {
        return 2 * std::uint64_t{shape.heads} * shape.head_dim + 2 * shape.heads + 1;
    }
    /// A head behind the last one does the last one's work, and writes nothing.
    __device__ __forceinline__ std::uint64_t head(unsigned i) const {
        return min(first_head + i * kWarps, shape.heads - 1);
    }

    /// Lays one head's rows of the tile into shared memory.
    __device__ __forceinline__ void load(AnyKeys const& from, std::uint32_t source) const {
        std::uint32_t const dims = shape.head_dim;
        __syncthreads();
        for (std::uint32_t i = threadIdx.x; i < kTokens * dims; i += kThreads) {
            std::uint32_t const token = min(first + i / dims, shape.tokens - 1);
            rows[i / dims * (dims + 1) + i % dims] = from.load(source, token, i % dims);
        }
        __syncthreads();
    }

    /// Adds what lies there, times the weights of row `of`.
    __device__ __forceinline__ void add(std::uint32_t of, float (&sums)[kHeadsPerWarp]) const {
        std::uint32_t const dims = shape.head_dim;
        float const* const own = rows + threadIdx.x % kWarpLanes * (dims + 1);
        float squares = 0;
#pragma unroll 2
        for (std::uint32_t dim = 0; dim < dims; ++dim) {
            float const x = own[dim];
            squares = fmaf(x, x, squares);
#pragma unroll
            for (unsigned i = 0; i < kHeadsPerWarp; ++i)
                sums[i] = fmaf(weights[head(i) * features() + std::uint64_t{of} * dims + dim], x,
                               sums[i]);
        }
        float const log = logf(squares > kSquaresLeast ? squares : kSquaresLeast) / 2;
#pragma unroll
        for (unsigned i = 0; i < kHeadsPerWarp; ++i)
            sums[i] =
                fmaf(weights[(head(i) + 1) * features() - 2 * shape.heads - 1 + of], log, sums[i]);
    }
};

//   weights    [heads, surrogate_features]   f32
//   turns      as turns() gives them         f32; read where there are pairs
//   attention  [heads, columns]              f32, or null
//   scores     [heads, columns]              written
DKV_KERNEL void __launch_bounds__(kThreads) surrogate_kernel(AnyKeys keys,
                                                             AnyKeys values,
                                                             Shape shape,
                                                             float const* __restrict__ weights,
                                                             float const* __restrict__ turns,
                                                             float const* __restrict__ attention,
                                                             float* __restrict__ scores,
                                                             Fault const* fault) {
    if (fault->kind != 0) return;  // A block that does not exist must not be read.
    DKV_DYNAMIC_SHARED(float, rows);
    Block const block{shape, weights, rows, blockIdx.x % shape.tiles * kTokens,
                      blockIdx.x / shape.tiles * kHeads + threadIdx.x / kWarpLanes};
    float sums[kHeadsPerWarp] = {};
    for (std::uint32_t source = 0; source < shape.heads; ++source) {
        block.load(keys, source);
        if (shape.pairs != 0) {
            turn_back(rows, shape, block.first, turns);
            __syncthreads();
        }
        block.add(source, sums);
    }
    for (std::uint32_t source = 0; source < shape.heads; ++source) {
        block.load(values, source);
        block.add(shape.heads + source, sums);
    }

    std::uint32_t const token = block.first + threadIdx.x % kWarpLanes;
    if (token >= shape.columns) return;
#pragma unroll
    for (unsigned i = 0; i < kHeadsPerWarp; ++i) {
        std::uint64_t const head = block.first_head + i * kWarps;
        if (head >= shape.heads) return;
        float score = sums[i] + weights[(head + 1) * block.features() - 1];
        std::uint64_t const column = head * shape.columns + token;
        if (!is_number(fabsf(score))) {
            score = __uint_as_float(0x7fc00000U);
        } else if (attention != nullptr) {
            float const seen = attention[column];
            score = fmaxf(score, logf(seen > kAttentionLeast ? seen : kAttentionLeast));
        }
        scores[column] = score;
    }
}

AnyKeys any_rows(RowsView const& view) {
    return {rows_on_device(view), view.head_dim, view.dtype,
            word_bytes(view) >= bytes_of(view.dtype)};
}

}  // namespace

Result<void> surrogate(SurrogateArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.keys.place != Place::Device)
        return Error{ErrorCode::InvalidArgument, "keys are in host memory"};
    if (args.scores.empty()) return {};
    queue.begin();
    DKV_TRY(check_blocks_later(args.keys, queue));
    DKV_TRY(check_blocks_later(args.values, queue));
    std::uint32_t const heads = args.keys.heads;
    std::uint32_t const columns = args.keys.tokens - args.window;
    Shape const shape{heads,
                      args.keys.tokens,
                      columns,
                      args.keys.head_dim,
                      args.pairs,
                      args.interleaved,
                      (columns - 1) / kTokens + 1};
    unsigned const grid = DKV_TRY(grid_of(std::uint64_t{shape.tiles} * ((heads - 1) / kHeads + 1)));
    std::size_t const shared = std::size_t{kTokens} * (shape.head_dim + 1) * sizeof(float);
    return launch(surrogate_kernel, grid, kThreads, shared, queue.stream(), any_rows(args.keys),
                  any_rows(args.values), shape, args.weights.data(), args.turns.data(),
                  args.attention.data(), args.scores.data(), queue.fault());
}

}  // namespace dkv::cuda
