// Before the passes: the queries in the lanes' order. Between them: the model's sinks.
#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/cuda/score_pass.h"
#include "kernels/cuda/score_tiles.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;

__device__ bool is_query(PassShape const& shape, std::uint32_t row) {
    return row < shape.rows && row % shape.window_rows < shape.window;
}

__device__ unsigned char const* query_at(PassShape const& shape,
                                         PassRows const& queries,
                                         std::uint32_t head,
                                         std::uint32_t row) {
    std::uint64_t const query_head = std::uint64_t{head} * shape.group + row / shape.window_rows;
    return queries.at.row(static_cast<std::uint32_t>(query_head), row % shape.window_rows);
}

// A thread writes what one lane holds of 16 rows and 16 dimensions: fragment a of mma.m16n8k16.
//
//   queries  [q_heads, window, head_dim]                          read once
//   packed   [kv_heads, rows_padded / 16, steps, 32] of uint4     written; zeros where no query is
DKV_KERNEL void pack_fragments_kernel(PassShape shape,
                                      PassRows queries,
                                      std::uint32_t steps,
                                      uint4* __restrict__ packed) {
    std::uint32_t const tiles = shape.rows_padded / 16;
    std::uint64_t const index = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (index >= std::uint64_t{shape.kv_heads} * tiles * steps * kWarpLanes) return;
    auto const lane = static_cast<std::uint32_t>(index % kWarpLanes);
    auto const step = static_cast<std::uint32_t>(index / kWarpLanes % steps);
    std::uint64_t const tile = index / kWarpLanes / steps;
    auto const head = static_cast<std::uint32_t>(tile / tiles);
    auto const row = static_cast<std::uint32_t>(tile % tiles) * 16 + lane / 4;

    std::uint32_t words[4];
    for (unsigned i = 0; i < 4; ++i) {  // Rows g and g + 8 of eight dimensions, then of the others.
        std::uint32_t const own = row + i % 2 * 8;
        words[i] = 0;
        if (!is_query(shape, own)) continue;
        unsigned char const* const query = query_at(shape, queries, head, own);
        for (unsigned half = 0; half < 2; ++half) {
            std::uint32_t const dim = step * 16 + i / 2 * 8 + lane % 4 * 2 + half;
            if (dim < shape.head_dim)
                words[i] |= load_bits16(query + dim * queries.at.dim_bytes) << (16 * half);
        }
    }
    packed[index] = {words[0], words[1], words[2], words[3]};
}

// A thread widens one element.
//
//   queries  [q_heads, window, head_dim]              read once
//   packed   [kv_heads, rows_padded, dims] of f32     written; zeros where no query is
DKV_KERNEL void pack_floats_kernel(PassShape shape,
                                   PassRows queries,
                                   std::uint32_t dims,
                                   float* __restrict__ packed) {
    std::uint64_t const index = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    std::uint64_t const rows = std::uint64_t{shape.kv_heads} * shape.rows_padded;
    if (index >= rows * dims) return;
    auto const dim = static_cast<std::uint32_t>(index % dims);
    auto const row = static_cast<std::uint32_t>(index / dims % shape.rows_padded);
    auto const head = static_cast<std::uint32_t>(index / dims / shape.rows_padded);
    bool const present = is_query(shape, row) && dim < shape.head_dim;
    packed[index] = present
                        ? load_f32(query_at(shape, queries, head, row) + dim * queries.at.dim_bytes,
                                   queries.dtype)
                        : 0;
}

// A thread adds its head's sink to a row's sum: what the row gives to tokens becomes less.
//
//   sinks    [q_heads]                    read
//   weights  [kv_heads, rows_padded]      read and written, but of rows that pad
DKV_KERNEL void join_sinks_kernel(PassShape shape,
                                  float const* __restrict__ sinks,
                                  float share,
                                  RowWeight* __restrict__ weights) {
    std::uint64_t const index = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (index >= std::uint64_t{shape.kv_heads} * shape.rows_padded) return;
    auto const row = static_cast<std::uint32_t>(index % shape.rows_padded);
    if (!is_query(shape, row)) return;
    std::uint64_t const head = index / shape.rows_padded * shape.group + row / shape.window_rows;
    float const sink = clamped(sinks[head] * kLog2E);
    RowWeight const tokens = weights[index];
    float const largest = fmaxf(tokens.largest, sink);
    float const sum =
        share / tokens.weight * exp2_approx(tokens.largest - largest) + exp2_approx(sink - largest);
    weights[index] = RowWeight{largest, share / sum};
}

unsigned blocks_of(std::uint64_t threads) {
    return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

PassRows pass_rows(RowsView const& view) {
    RowsOnDevice const at = rows_on_device(view);
    bool const wide = at.dim_bytes == bytes_of(view.dtype) && word_bytes(view) == 16;
    return {at, view.head_dim, view.dtype, wide};
}

}  // namespace

Result<Pass> Pass::plan(RowsView const& queries,
                        RowsView const& keys,
                        std::uint32_t prefix,
                        float scale,
                        float softcap) {
    if (keys.head_dim > kHeadDimMax)
        return Error{ErrorCode::Unsupported, "head_dim is " + std::to_string(keys.head_dim) +
                                                 ", more than the " + std::to_string(kHeadDimMax) +
                                                 " that a GPU's kernels take"};
    Pass pass;
    PassShape& shape = pass.shape_;
    shape.kv_heads = keys.heads;
    shape.group = queries.heads / keys.heads;
    shape.window = queries.tokens;
    shape.prefix = prefix;
    shape.head_dim = keys.head_dim;
    float const wanted = scale != 0 ? scale : 1.0F / std::sqrt(static_cast<float>(keys.head_dim));
    shape.scale = wanted * (softcap == 0 ? kLog2E : 1.0F);
    shape.softcap = softcap;
    shape.inverse_softcap = std::min(1 / softcap, FLT_MAX);  // Times 0 it must be 0.
    pass.queries_ = pass_rows(queries);
    pass.keys_ = pass_rows(keys);
    pass.products_ = keys.dtype == Dtype::F32 || keys.head_dim > 256 ? Products::F32
                     : keys.dtype == Dtype::F16                      ? Products::F16
                                                                     : Products::Bf16;
    // What is copied as it is must be what is multiplied.
    if (pass.products_ == Products::F32 && keys.dtype != Dtype::F32) pass.keys_.wide = false;

    std::uint64_t const window_rows = (std::uint64_t{shape.window} + 7) / 8 * 8;
    std::uint64_t const rows = shape.group * window_rows;
    constexpr std::uint64_t kRowsMax = std::uint64_t{1} << 31U;
    if (rows > kRowsMax / shape.kv_heads)
        return Error{ErrorCode::LimitExceeded, std::to_string(queries.heads) + " query heads of " +
                                                   std::to_string(shape.window) +
                                                   " tokens are more than " +
                                                   std::to_string(kRowsMax) + " rows"};
    shape.window_rows = static_cast<std::uint32_t>(window_rows);
    shape.rows = static_cast<std::uint32_t>(rows);
    with_engine(pass.products_, shape, [&](auto const& engine) {
        constexpr std::uint32_t warp_rows = 16 * std::remove_cvref_t<decltype(engine)>::kTiles;
        std::uint32_t const warps = (shape.rows - 1) / warp_rows + 1;
        pass.row_warps_ = warps > 2 ? kPassWarps : warps;
        std::uint32_t const chunk = pass.row_warps_ * warp_rows;
        shape.rows_padded = ((shape.rows - 1) / chunk + 1) * chunk;
        pass.packed_bytes_ = engine.packed_bytes(std::uint64_t{shape.kv_heads} * shape.rows_padded);
    });
    return pass;
}

Result<void> Pass::take_memory(Queue& queue, PassNeeds const& needs, std::span<float const> sinks) {
    memory_.packed = DKV_TRY(queue.scratch<unsigned char>(needs.packed_bytes));
    memory_.weights = DKV_TRY(queue.scratch<RowWeight>(needs.rows));
    memory_.partials = DKV_TRY(queue.scratch<RowSum>(needs.partials));
    memory_.sinks = sinks.empty() ? nullptr : DKV_TRY(queue.upload(sinks));
    return {};
}

Result<void> Pass::pack_queries(Queue& queue) {
    std::uint64_t const rows = std::uint64_t{shape_.kv_heads} * shape_.rows_padded;
    if (products_ == Products::F32)
        return launch(pack_floats_kernel, blocks_of(packed_bytes_ / 4), kThreads, 0, queue.stream(),
                      shape_, queries_, static_cast<std::uint32_t>(packed_bytes_ / 4 / rows),
                      reinterpret_cast<float*>(memory_.packed));
    return launch(pack_fragments_kernel, blocks_of(packed_bytes_ / 16), kThreads, 0, queue.stream(),
                  shape_, queries_, static_cast<std::uint32_t>(packed_bytes_ / 32 / rows),
                  reinterpret_cast<uint4*>(memory_.packed));
}

Result<void> Pass::join_sinks(Queue& queue, float share) const {
    if (memory_.sinks == nullptr) return {};
    std::uint64_t const rows = std::uint64_t{shape_.kv_heads} * shape_.rows_padded;
    return launch(join_sinks_kernel, blocks_of(rows), kThreads, 0, queue.stream(), shape_,
                  memory_.sinks, share, memory_.weights);
}

}  // namespace dkv::cuda
