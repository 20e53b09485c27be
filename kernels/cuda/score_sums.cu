// The second pass over the keys, or the only one: what the rows give to each token.
#include <algorithm>

#include "kernels/cuda/score_tiles.h"

namespace dkv::cuda {
namespace {

constexpr std::uint32_t kBlocksWanted = 1536;

struct SumsGrid {
    std::uint32_t tile_tokens;  // A multiple of the 16 * kTiles of a warp.
    std::uint32_t tiles;
    std::uint32_t block_tiles;
    std::uint32_t blocks;  // Of a KV head.
};

/// What a lane collects for tokens 16 m + g + 8 h of its warp, number 2 m + h.
template <unsigned kTiles>
struct LaneTokens {
    float of[2 * kTiles];

    __device__ void fill(float value) {
#pragma unroll
        for (float& each : of)
            each = value;
    }
    /// Sums over the lanes that share a token; all four get them.
    __device__ void sum_four() {
#pragma unroll
        for (float& each : of) {
            each += __shfl_xor_sync(kAllLanes, each, 1);
            each += __shfl_xor_sync(kAllLanes, each, 2);
        }
    }
    /// The largest of the lanes that share a token.
    __device__ void largest_of_four() {
#pragma unroll
        for (float& each : of) {
            each = fmaxf(each, __shfl_xor_sync(kAllLanes, each, 1));
            each = fmaxf(each, __shfl_xor_sync(kAllLanes, each, 2));
        }
    }
    /// To row[token] if that is below `columns`: lane t of four writes number t.
    __device__ void store(float* row,
                          std::uint32_t first,
                          SumsTarget const& target,
                          unsigned lane,
                          float divisor) const {
        // No of[t]: that would be memory.
        float mine = lane % 2 == 0 ? of[0] : of[1];
        if constexpr (kTiles == 2) mine = lane % 4 < 2 ? mine : lane % 2 == 0 ? of[2] : of[3];
        std::uint32_t const token = first + lane / 4 + lane % 4 * 8;
        if (lane % 4 >= 2 * kTiles || token >= target.columns) return;
        mine /= divisor;
        row[token] = token < target.begun ? row[token] + mine : mine;
    }
};

/// Adds to `sums` what eight rows give, of which weights[0] and [1] are the lane's; kPeaks: the
/// largest of them go to `peaks`.
template <bool kPeaks, unsigned kTiles>
__device__ void weigh(float const (&logits)[kTiles][2][4],
                      unsigned n,
                      RowWeight const* __restrict__ weights,
                      LaneTokens<kTiles>& sums,
                      LaneTokens<kTiles>& peaks) {
    float4 const rows = __ldg(reinterpret_cast<float4 const*>(weights));
#pragma unroll
    for (unsigned i = 0; i < 2 * kTiles; ++i) {
        float const* const own = &logits[i / 2][n][i % 2 * 2];
        float const one = exp2_approx(fminf(own[0] - rows.x, 0.0F));
        float const two = exp2_approx(fminf(own[1] - rows.z, 0.0F));
        sums.of[i] = fmaf(one, rows.y, sums.of[i]);
        sums.of[i] = fmaf(two, rows.w, sums.of[i]);
        if constexpr (kPeaks) peaks.of[i] = fmaxf(peaks.of[i], fmaxf(one * rows.y, two * rows.w));
    }
}

/// Minus infinity for what eight queries do not see: the lane's first logit is that of `query` of
/// the window and `token`.
template <unsigned kTiles>
__device__ void hide_future(PassShape const& shape,
                            float (&logits)[kTiles][2][4],
                            unsigned n,
                            std::uint32_t query,
                            std::uint32_t token) {
#pragma unroll
    for (unsigned i = 0; i < 2 * kTiles; ++i)
#pragma unroll
        for (unsigned j = 0; j < 2; ++j)
            if (token + 8 * i > shape.prefix + query + j)
                logits[i / 2][n][i % 2 * 2 + j] = -INFINITY;
}

/// What all rows of a KV head give to a warp's tokens, from `first` on, that `engine` holds.
template <bool kPeaks, class Engine>
__device__ void sum_rows(Engine const& engine,
                         PassShape const& shape,
                         unsigned char const* __restrict__ packed,
                         RowWeight const* __restrict__ weights,
                         SumsTarget const& target,
                         std::uint32_t head,
                         std::uint32_t first,
                         unsigned lane) {
    constexpr unsigned kTiles = Engine::kTiles;
    bool const causal = first + 16 * kTiles > shape.prefix;
    LaneTokens<kTiles> sums;
    LaneTokens<kTiles> scores;
    LaneTokens<kTiles> mass;
    LaneTokens<kTiles> peaks;
    peaks.fill(0);
    sums.fill(0);
    scores.fill(0);  // No sum is below it.
    mass.fill(0);
    std::uint32_t query_head = head * shape.group;
    std::uint32_t place = 0;  // Of the eight rows in their query head.
    for (std::uint32_t row = 0; row < shape.rows; row += 16) {
        float acc[kTiles][2][4];
        bool const seen = first <= shape.prefix + last_place(shape, place, 16);
        if (seen) {
            engine.pass_rows(acc, packed + engine.packed_bytes(row), lane);
            take_logits(shape, acc);
        }
#pragma unroll
        for (unsigned n = 0; n < 2; ++n) {
            if (row + 8 * n >= shape.rows) break;
            if (seen) {
                if (causal) hide_future(shape, acc, n, place + lane % 4 * 2, first + lane / 4);
                weigh<kPeaks>(acc, n, weights + row + 8 * n + lane % 4 * 2, sums, peaks);
            }
            place += 8;
            if (place < shape.window_rows) continue;
            place = 0;
            sums.sum_four();
            if (target.reduce == GroupReduce::None)
                sums.store(target.scores + query_head * target.stride, first, target, lane, 1);
            ++query_head;
#pragma unroll
            for (unsigned i = 0; i < 2 * kTiles; ++i) {
                scores.of[i] = target.reduce == GroupReduce::Max ? fmaxf(scores.of[i], sums.of[i])
                                                                 : scores.of[i] + sums.of[i];
                mass.of[i] += sums.of[i];
            }
            sums.fill(0);
        }
    }
    auto const group = static_cast<float>(shape.group);
    if (target.reduce != GroupReduce::None)
        scores.store(target.scores + head * target.stride, first, target, lane,
                     target.reduce == GroupReduce::Mean ? group : 1);
    if (target.mass != nullptr)
        mass.store(target.mass + head * target.stride, first, target, lane, group);
    if constexpr (kPeaks) {
        peaks.largest_of_four();
        peaks.store(target.peaks + head * target.stride, first, target, lane, target.share);
    }
}

// A block takes tiles of one KV head's tokens; a warp holds 16 * kTiles of a tile's tokens and
// passes all rows by them, so that no other block adds to the same sums.
//
//   packed   [kv_heads, rows_padded]          the queries; read
//   weights  [kv_heads, rows_padded]          read
//   keys     [kv_heads, columns, head_dim]    read once
template <class Engine, bool kPeaks>
DKV_KERNEL void __launch_bounds__(kPassThreads, kPeaks ? 2 : 3)
    sums_kernel(PassShape shape,
                Products products,
                PassRows keys,
                unsigned char const* __restrict__ packed,
                RowWeight const* __restrict__ weights,
                SumsTarget target,
                SumsGrid grid,
                Fault const* fault) {
    if (fault->kind != 0) return;  // A block that does not exist must not be read.
    DKV_DYNAMIC_SHARED(unsigned char, tile_keys);
    Engine engine(shape, products);
    unsigned const lane = threadIdx.x % kWarpLanes;
    unsigned const place = threadIdx.x / kWarpLanes * 16 * Engine::kTiles;
    std::uint32_t const head = blockIdx.x / grid.blocks;
    std::uint32_t const first_tile = blockIdx.x % grid.blocks * grid.block_tiles;
    std::uint32_t const end_tile = min(first_tile + grid.block_tiles, grid.tiles);
    std::uint64_t const first_row = std::uint64_t{head} * shape.rows_padded;

    auto const load = [&](std::uint32_t tile) {
        if (tile < end_tile)
            load_tile(engine, keys, head, tile * grid.tile_tokens, grid.tile_tokens, target.columns,
                      tile_keys);
        commit_copies();
    };
    load(first_tile);
    for (std::uint32_t tile = first_tile; tile < end_tile; ++tile) {
        wait_copies<0>();
        __syncthreads();
        bool const active = place < grid.tile_tokens;
        if (active) engine.hold_keys(tile_keys + place * engine.key_stride(), lane);
        if constexpr (Engine::kHoldsKeys) {
            __syncthreads();
            load(tile + 1);  // Under way while this tile is met.
        }
        if (active)
            sum_rows<kPeaks>(engine, shape, packed + engine.packed_bytes(first_row),
                             weights + first_row, target, head, tile * grid.tile_tokens + place,
                             lane);
        if constexpr (!Engine::kHoldsKeys) {
            __syncthreads();
            load(tile + 1);
        }
    }
}

}  // namespace

Result<void> Pass::sums(Queue& queue, SumsTarget const& target) const {
    return with_engine(products_, shape_, [&](auto const& engine) -> Result<void> {
        using Engine = std::remove_cvref_t<decltype(engine)>;
        SumsGrid grid{};
        grid.tile_tokens = kPassWarps * 16 * Engine::kTiles;
        while (grid.tile_tokens > 16 * Engine::kTiles &&
               std::size_t{grid.tile_tokens} * engine.key_stride() > kSharedBytesMax)
            grid.tile_tokens /= 2;
        grid.tiles = (target.columns - 1) / grid.tile_tokens + 1;
        std::uint64_t const all = std::uint64_t{grid.tiles} * shape_.kv_heads;
        grid.block_tiles = static_cast<std::uint32_t>((all + kBlocksWanted - 1) / kBlocksWanted);
        grid.blocks = (grid.tiles - 1) / grid.block_tiles + 1;
        auto* const kernel =
            target.peaks == nullptr ? sums_kernel<Engine, false> : sums_kernel<Engine, true>;
        return launch(kernel, shape_.kv_heads * grid.blocks, kPassThreads,
                      std::size_t{grid.tile_tokens} * engine.key_stride(), queue.stream(), shape_,
                      products_, keys_, memory_.packed, memory_.weights, target, grid,
                      static_cast<Fault const*>(queue.fault()));
    });
}

}  // namespace dkv::cuda
