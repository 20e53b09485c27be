// The first pass over the keys: what each row's softmax sums to.
#include <algorithm>

#include "kernels/cuda/score_tiles.h"

namespace dkv::cuda {
namespace {

// Ranges of tokens depend on the shape alone and are joined in order: the same bits on any device.
constexpr std::uint32_t kBlocksWanted = 1536;
constexpr std::uint32_t kSplitTilesMin = 2;  // So that one is copied while another is met.
constexpr std::uint32_t kChunksMax = 16;
constexpr std::uint32_t kTileTokensMax = 64;
constexpr std::size_t kTilesBytesWanted = std::size_t{36} << 10U;  // For blocks side by side.

struct StatisticsGrid {
    std::uint32_t row_warps;     // Warps that share a tile's rows; the others share its tokens.
    std::uint32_t token_warps;   // row_warps * token_warps <= kPassWarps
    std::uint32_t chunks;        // Of rows: what the block's warps hold at a time.
    std::uint32_t block_chunks;  // Of them, a block's.
    std::uint32_t row_groups;    // Blocks that share the rows.
    std::uint32_t kept_rows;     // A block's, where its chunks take turns.
    std::uint32_t tile_tokens;   // A multiple of 16 * token_warps.
    std::uint32_t tiles;
    std::uint32_t split_tiles;  // A block's.
    std::uint32_t splits;
};

__device__ RowSum join(RowSum a, RowSum b) {
    float const largest = fmaxf(a.largest, b.largest);
    return {largest,
            a.sum * exp2_approx(a.largest - largest) + b.sum * exp2_approx(b.largest - largest)};
}

/// The other side of xor-ed lanes joined in.
__device__ RowSum join_lanes(RowSum mine, int distance) {
    RowSum const other{__shfl_xor_sync(kAllLanes, mine.largest, distance),
                       __shfl_xor_sync(kAllLanes, mine.sum, distance)};
    return join(mine, other);
}

/// What a lane knows of the rows whose products it gets: 16 m + g + 8 h is number 2 m + h.
template <unsigned kTiles>
struct LaneSums {
    RowSum rows[2 * kTiles];

    __device__ void clear() {
#pragma unroll
        for (RowSum& row : rows)
            row = {-FLT_MAX, 0};
    }

    /// Four logits of each row.
    __device__ void add(float const (&logits)[kTiles][2][4]) {
#pragma unroll
        for (unsigned i = 0; i < 2 * kTiles; ++i) {
            auto const& tile = logits[i / 2];
            unsigned const at = i % 2 * 2;
            float const largest =
                fmaxf(fmaxf(tile[0][at], tile[0][at + 1]), fmaxf(tile[1][at], tile[1][at + 1]));
            RowSum& row = rows[i];
            if (largest > row.largest) {
                row.sum *= exp2_approx(row.largest - largest);
                row.largest = largest;
            }
#pragma unroll
            for (unsigned j = 0; j < 4; ++j)
                row.sum += exp2_approx(tile[j / 2][at + j % 2] - row.largest);
        }
    }

    /// The whole rows' sums, of which lane t of four gets number t's.
    __device__ RowSum join_four(unsigned t) {
        RowSum mine{-FLT_MAX, 0};
#pragma unroll
        for (unsigned i = 0; i < 2 * kTiles; ++i) {
            RowSum const row = join_lanes(join_lanes(rows[i], 1), 2);
            if (i == t) mine = row;
        }
        return mine;
    }
};

/// Minus infinity for what the queries do not see: the lane's first logit is that of `row` and
/// `token`.
template <unsigned kTiles>
__device__ void hide_future(PassShape const& shape,
                            float (&logits)[kTiles][2][4],
                            std::uint32_t row,
                            std::uint32_t token) {
#pragma unroll
    for (unsigned i = 0; i < 2 * kTiles; ++i) {
        std::uint32_t const limit = shape.prefix + (row + 8 * i) % shape.window_rows;
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
            if (token + j / 2 * 8 + j % 2 > limit)
                logits[i / 2][j / 2][i % 2 * 2 + j % 2] = -INFINITY;
    }
}

// A block meets a range of one KV head's tokens, tile by tile, with its chunks of rows. Warp w
// holds 16 * kTiles of a chunk's rows, from part w % row_warps on, and multiplies them with the
// tile's tokens of part w / row_warps.
//
//   packed    [kv_heads, rows_padded]                              the queries; read
//   keys      [kv_heads, tokens, head_dim]                         read
//   partials  [kv_heads, rows_padded, splits * token_warps]        written
template <class Engine>
DKV_KERNEL void __launch_bounds__(kPassThreads, 4)
    statistics_kernel(PassShape shape,
                      Products products,
                      PassRows keys,
                      unsigned char const* __restrict__ packed,
                      StatisticsGrid grid,
                      RowSum* __restrict__ partials,
                      Fault const* fault) {
    if (fault->kind != 0) return;  // A block that does not exist must not be read.
    constexpr unsigned kTiles = Engine::kTiles;
    DKV_DYNAMIC_SHARED(unsigned char, shared);
    Engine engine(shape, products);
    unsigned const lane = threadIdx.x % kWarpLanes;
    unsigned const warp = threadIdx.x / kWarpLanes;
    unsigned const row_warp = warp % grid.row_warps;
    unsigned const token_warp = warp / grid.row_warps;
    std::uint32_t const row_group = blockIdx.x % grid.row_groups;
    std::uint32_t const split = blockIdx.x / grid.row_groups % grid.splits;
    std::uint32_t const head = blockIdx.x / grid.row_groups / grid.splits;
    std::uint32_t const first_chunk = row_group * grid.block_chunks;
    std::uint32_t const chunks = min(grid.block_chunks, grid.chunks - first_chunk);
    std::uint32_t const first_tile = split * grid.split_tiles;
    std::uint32_t const end_tile = min(first_tile + grid.split_tiles, grid.tiles);
    std::uint32_t const end_token = shape.prefix + shape.window;
    std::uint32_t const warp_tokens = grid.tile_tokens / grid.token_warps;
    unsigned const tile_bytes = grid.tile_tokens * engine.key_stride();
    // Only where chunks take turns; a row's is its owner's alone.
    auto* const kept = reinterpret_cast<RowSum*>(shared + 2 * tile_bytes);

    auto const load = [&](std::uint32_t tile) {
        std::uint32_t const token = tile * grid.tile_tokens;
        load_tile(engine, keys, head, token, grid.tile_tokens, end_token,
                  shared + (tile - first_tile) % 2 * tile_bytes);
    };
    LaneSums<kTiles> sums;
    load(first_tile);
    commit_copies();
    for (std::uint32_t tile = first_tile; tile < end_tile; ++tile) {
        if (tile + 1 < end_tile) load(tile + 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        unsigned char const* const stage = shared + (tile - first_tile) % 2 * tile_bytes;
        std::uint32_t const token = tile * grid.tile_tokens;
        bool const causal = token + grid.tile_tokens > shape.prefix;
        for (std::uint32_t chunk = 0; token_warp < grid.token_warps && chunk < chunks; ++chunk) {
            std::uint32_t const row =
                ((first_chunk + chunk) * grid.row_warps + row_warp) * 16 * kTiles;
            if (chunks > 1 || tile == first_tile) {
                engine.hold_rows(
                    packed + engine.packed_bytes(std::uint64_t{head} * shape.rows_padded + row),
                    lane);
                sums.clear();
            }
            std::uint32_t const last_seen =
                shape.prefix + last_place(shape, row % shape.window_rows, 16 * kTiles);
            for (std::uint32_t at = 0; at < warp_tokens; at += 16) {
                std::uint32_t const place = token_warp * warp_tokens + at;
                if (token + place > last_seen) break;
                float acc[kTiles][2][4];
                engine.pass_keys(acc, stage + place * engine.key_stride(), lane);
                take_logits(shape, acc);
                if (causal) hide_future(shape, acc, row + lane / 4, token + place + lane % 4 * 2);
                sums.add(acc);
            }
            if (chunks == 1 && tile + 1 < end_tile) continue;

            unsigned const t = lane % 4;
            RowSum mine = sums.join_four(t);
            if (t >= 2 * kTiles) continue;
            std::uint32_t const own = row + lane / 4 + 8 * t;
            if (chunks > 1) {
                RowSum& before = kept[own - first_chunk * grid.row_warps * 16 * kTiles];
                if (tile > first_tile) mine = join(before, mine);
                before = mine;
            }
            if (tile + 1 == end_tile)
                partials[(std::uint64_t{head} * shape.rows_padded + own) *
                             (grid.splits * grid.token_warps) +
                         split * grid.token_warps + token_warp] = mine;
        }
        __syncthreads();
    }
}

// A warp joins a row's parts: lane l takes parts l, l + 32, …
//
//   partials  [kv_heads * rows_padded, parts]   read
//   weights   [kv_heads * rows_padded]          written
DKV_KERNEL void join_kernel(PassShape shape,
                            RowSum const* __restrict__ partials,
                            std::uint32_t parts,
                            float share,
                            RowWeight* __restrict__ weights) {
    std::uint64_t const row = std::uint64_t{blockIdx.x} * kPassWarps + threadIdx.x / kWarpLanes;
    if (row >= std::uint64_t{shape.kv_heads} * shape.rows_padded) return;
    RowSum mine{-FLT_MAX, 0};
    for (std::uint32_t part = threadIdx.x % kWarpLanes; part < parts; part += kWarpLanes)
        mine = join(mine, partials[row * parts + part]);
    for (int distance = 16; distance > 0; distance /= 2)
        mine = join_lanes(mine, distance);
    if (threadIdx.x % kWarpLanes != 0) return;
    auto const in_head = static_cast<std::uint32_t>(row % shape.rows_padded);
    bool const query = in_head < shape.rows && in_head % shape.window_rows < shape.window;
    weights[row] = query ? RowWeight{mine.largest, share / mine.sum} : RowWeight{0, 0};
}

std::uint32_t pieces(std::uint32_t whole, std::uint32_t piece) {
    return static_cast<std::uint32_t>((std::uint64_t{whole} + piece - 1) / piece);
}

template <class Engine>
StatisticsGrid grid_for(Engine const& engine, PassShape const& shape, std::uint32_t row_warps) {
    StatisticsGrid grid{};
    grid.row_warps = row_warps;
    std::uint32_t const chunk_rows = row_warps * 16 * Engine::kTiles;
    grid.chunks = shape.rows_padded / chunk_rows;
    grid.row_groups = pieces(grid.chunks, kChunksMax);
    grid.block_chunks = pieces(grid.chunks, grid.row_groups);
    grid.kept_rows = grid.block_chunks > 1 ? grid.block_chunks * chunk_rows : 0;
    grid.tile_tokens = kTileTokensMax;
    while (grid.tile_tokens > 16 && 2 * grid.tile_tokens * engine.key_stride() > kTilesBytesWanted)
        grid.tile_tokens /= 2;
    grid.token_warps = std::min(kPassWarps / row_warps, grid.tile_tokens / 16);
    grid.tiles = pieces(shape.prefix + shape.window, grid.tile_tokens);
    std::uint32_t const wanted =
        std::max(1U, kBlocksWanted / std::min(kBlocksWanted, shape.kv_heads * grid.row_groups));
    grid.split_tiles = std::max(kSplitTilesMin, pieces(grid.tiles, wanted));
    grid.splits = pieces(grid.tiles, grid.split_tiles);
    return grid;
}

}  // namespace

std::size_t Pass::partials() const {
    std::size_t parts = 0;
    with_engine(products_, shape_, [&](auto const& engine) {
        StatisticsGrid const grid = grid_for(engine, shape_, row_warps_);
        parts = grid.splits * grid.token_warps;
    });
    return parts * shape_.kv_heads * shape_.rows_padded;
}

Result<void> Pass::statistics(Queue& queue, float share) {
    return with_engine(products_, shape_, [&](auto const& engine) -> Result<void> {
        using Engine = std::remove_cvref_t<decltype(engine)>;
        StatisticsGrid const grid = grid_for(engine, shape_, row_warps_);
        std::size_t const shared = std::size_t{2} * grid.tile_tokens * engine.key_stride() +
                                   grid.kept_rows * sizeof(RowSum);
        DKV_ASSERT(shared <= kSharedBytesMax);
        DKV_TRY(launch(statistics_kernel<Engine>, shape_.kv_heads * grid.splits * grid.row_groups,
                       kPassThreads, shared, queue.stream(), shape_, products_, keys_,
                       memory_.packed, grid, memory_.partials,
                       static_cast<Fault const*>(queue.fault())));
        std::uint64_t const rows = std::uint64_t{shape_.kv_heads} * shape_.rows_padded;
        auto const blocks = static_cast<unsigned>((rows + kPassWarps - 1) / kPassWarps);
        return launch(join_kernel, blocks, kPassThreads, 0, queue.stream(), shape_,
                      memory_.partials, grid.splits * grid.token_warps, share, memory_.weights);
    });
}

}  // namespace dkv::cuda
