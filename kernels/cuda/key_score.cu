// Norm reads the keys once. Difference reads them twice: for the mean of directions, chunk by chunk
// with the chunks' sums added up in their order, and for the cosines. Keys that are not whole
// 16-byte words, or too long for registers, once more: their norms are stored first.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/key_score_rows.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kKeysPerLanes = 4;  // Loads under way per thread before the first is used.
constexpr float kLowest = -3.402823466e+38F;
constexpr std::uint32_t kChunkLeast = 512;
constexpr std::uint32_t kChunksMax = 256;  // Per head.

struct Shape {
    std::uint32_t heads;
    std::uint32_t tokens;   // Those that are met.
    std::uint32_t columns;  // Per head, of what is written.
    std::uint32_t head_dim;
    unsigned lanes;          // A power of two: they share a key.
    std::uint32_t per_head;  // Blocks.
    std::uint32_t chunk_tokens;
};

/// Of 16-byte words the mean's floats are, too.
template <unsigned kElements>
__device__ __forceinline__ void load_floats(float const* from, float (&out)[kElements]) {
    if constexpr (kElements == 1) {
        out[0] = from[0];
    } else {
#pragma unroll
        for (unsigned e = 0; e < kElements; e += 4) {
            float4 const four = *reinterpret_cast<float4 const*>(from + e);
            out[e] = four.x;
            out[e + 1] = four.y;
            out[e + 2] = four.z;
            out[e + 3] = four.w;
        }
    }
}

enum class Measure { Norm, Cosine, PlainNorm };

// `lanes` neighbouring lanes measure four keys at a time.
//
//   means   [heads, head_dim]   f32, read for Cosine: of norm 1, or zeros
//   scores  [heads, columns]    written: -‖k‖, -cos(k, mean), or for PlainNorm ‖k‖
template <class Keys, Measure kMeasure>
DKV_KERNEL void __launch_bounds__(kThreads) measure_kernel(Keys keys,
                                                           Shape shape,
                                                           float const* __restrict__ means,
                                                           float* __restrict__ scores,
                                                           Fault const* fault) {
    if (fault->kind != 0) return;  // A block that does not exist must not be read.
    constexpr unsigned kElements = Keys::kElements;
    std::uint32_t const head = blockIdx.x / shape.per_head;
    unsigned const groups = kThreads / shape.lanes;
    unsigned const lane = threadIdx.x % shape.lanes;
    std::uint64_t const first =
        std::uint64_t{blockIdx.x % shape.per_head} * groups * kKeysPerLanes +
        threadIdx.x / shape.lanes;
    float squares[kKeysPerLanes] = {};
    float products[kKeysPerLanes] = {};
    for (std::uint32_t piece = lane; piece < keys.pieces; piece += shape.lanes) {
        typename Keys::Piece pieces[kKeysPerLanes];
#pragma unroll
        for (unsigned i = 0; i < kKeysPerLanes; ++i) {
            std::uint64_t const token = min(first + i * groups, std::uint64_t{shape.tokens - 1});
            pieces[i] = keys.load(head, static_cast<std::uint32_t>(token), piece);
        }
        float mean[kElements] = {};
        if constexpr (kMeasure == Measure::Cosine) {
            load_floats(means + std::uint64_t{head} * shape.head_dim + piece * kElements, mean);
        }
#pragma unroll
        for (unsigned i = 0; i < kKeysPerLanes; ++i) {
            float elements[kElements];
            Keys::widen(pieces[i], elements);
#pragma unroll
            for (unsigned e = 0; e < kElements; ++e) {
                squares[i] = fmaf(elements[e], elements[e], squares[i]);
                if constexpr (kMeasure == Measure::Cosine)
                    products[i] = fmaf(elements[e], mean[e], products[i]);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < kKeysPerLanes; ++i) {
        float const norm = sqrtf(sum_of_lanes(squares[i], shape.lanes));
        float score = is_number(norm) ? -norm : kLowest;
        if constexpr (kMeasure == Measure::PlainNorm) score = norm;
        if constexpr (kMeasure == Measure::Cosine) {
            float const product = sum_of_lanes(products[i], shape.lanes);
            if (is_number(norm)) score = norm == 0 ? 0.0F : -product / norm;
        }
        std::uint64_t const token = first + i * groups;
        if (lane == 0 && token < shape.tokens)
            scores[std::uint64_t{head} * shape.columns + token] = score;
    }
}

// One block adds up the directions of one chunk of a head's keys: each group of lanes every
// groups-th key, in registers; then the groups in their order.
//
//   partials  [heads, chunks, head_dim]   written
template <class Keys, unsigned kPieces>
DKV_KERNEL void __launch_bounds__(kThreads)
    directions_kernel(Keys keys, Shape shape, float* __restrict__ partials, Fault const* fault) {
    if (fault->kind != 0) return;
    constexpr unsigned kElements = Keys::kElements;
    constexpr unsigned kMine = kPieces * kElements;
    constexpr unsigned kKeys = 2;  // At a time.
    __shared__ float shared[kThreads * kMine];
    std::uint32_t const head = blockIdx.x / shape.per_head;
    std::uint64_t const begin = std::uint64_t{blockIdx.x % shape.per_head} * shape.chunk_tokens;
    std::uint64_t const end = min(begin + shape.chunk_tokens, std::uint64_t{shape.tokens});
    unsigned const groups = kThreads / shape.lanes;
    unsigned const group = threadIdx.x / shape.lanes;
    unsigned const lane = threadIdx.x % shape.lanes;
    float sums[kMine] = {};
    // The whole block goes round together: shuffles want all lanes of a warp.
    for (std::uint64_t at = begin; at < end; at += kKeys * groups) {
        typename Keys::Piece pieces[kKeys][kPieces];
#pragma unroll
        for (unsigned k = 0; k < kKeys; ++k) {
            std::uint64_t const token = min(at + k * groups + group, end - 1);
#pragma unroll
            for (unsigned p = 0; p < kPieces; ++p) {
                std::uint32_t const piece = min(lane + p * shape.lanes, keys.pieces - 1);
                pieces[k][p] = keys.load(head, static_cast<std::uint32_t>(token), piece);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < kKeys; ++k) {
            float elements[kPieces][kElements];
            float squares = 0;
#pragma unroll
            for (unsigned p = 0; p < kPieces; ++p) {
                Keys::widen(pieces[k][p], elements[p]);
                float own = 0;
#pragma unroll
                for (unsigned e = 0; e < kElements; ++e)
                    own = fmaf(elements[p][e], elements[p][e], own);
                squares += lane + p * shape.lanes < keys.pieces ? own : 0.0F;
            }
            float const norm = sqrtf(sum_of_lanes(squares, shape.lanes));
            if (!is_number(norm) || norm == 0 || at + k * groups + group >= end) continue;
            float const factor = 1 / norm;
#pragma unroll
            for (unsigned p = 0; p < kPieces; ++p)
#pragma unroll
                for (unsigned e = 0; e < kElements; ++e)
                    sums[p * kElements + e] = fmaf(elements[p][e], factor, sums[p * kElements + e]);
        }
    }
    unsigned const row_floats = shape.lanes * kMine;
#pragma unroll
    for (unsigned p = 0; p < kPieces; ++p)
#pragma unroll
        for (unsigned e = 0; e < kElements; ++e)
            shared[group * row_floats + (lane + p * shape.lanes) * kElements + e] =
                sums[p * kElements + e];
    __syncthreads();
    for (unsigned dim = threadIdx.x; dim < shape.head_dim; dim += kThreads) {
        float sum = 0;
        for (unsigned i = 0; i < groups; ++i)
            sum += shared[i * row_floats + dim];
        partials[std::uint64_t{blockIdx.x} * shape.head_dim + dim] = sum;
    }
}

// The same of any keys, whose norms are known: one thread per dimension, token after token.
DKV_KERNEL void __launch_bounds__(kThreads) any_directions_kernel(AnyKeys keys,
                                                                  Shape shape,
                                                                  float const* __restrict__ norms,
                                                                  float* __restrict__ partials,
                                                                  Fault const* fault) {
    if (fault->kind != 0) return;
    std::uint32_t const head = blockIdx.x / shape.per_head;
    std::uint64_t const begin = std::uint64_t{blockIdx.x % shape.per_head} * shape.chunk_tokens;
    std::uint64_t const end = min(begin + shape.chunk_tokens, std::uint64_t{shape.tokens});
    for (std::uint32_t dim = threadIdx.x; dim < shape.head_dim; dim += kThreads) {
        float sum = 0;
        for (std::uint64_t token = begin; token < end; ++token) {
            float const norm = norms[std::uint64_t{head} * shape.tokens + token];
            if (!is_number(norm) || norm == 0) continue;
            sum += keys.load(head, static_cast<std::uint32_t>(token), dim) / norm;
        }
        partials[std::uint64_t{blockIdx.x} * shape.head_dim + dim] = sum;
    }
}

// One block turns one head's chunks into the mean's direction: of norm 1, or zeros. The mean's own
// length does not matter.
//
//   partials  [heads, chunks, head_dim]   read
//   means     [heads, head_dim]           written
DKV_KERNEL void __launch_bounds__(kThreads) means_kernel(float const* __restrict__ partials,
                                                         std::uint32_t chunks,
                                                         std::uint32_t head_dim,
                                                         float* __restrict__ means,
                                                         Fault const* fault) {
    if (fault->kind != 0) return;
    __shared__ double squares[kThreads];
    float* const mean = means + std::uint64_t{blockIdx.x} * head_dim;
    double mine = 0;
    for (std::uint32_t dim = threadIdx.x; dim < head_dim; dim += kThreads) {
        double sum = 0;
        for (std::uint32_t chunk = 0; chunk < chunks; ++chunk)
            sum += static_cast<double>(
                partials[(std::uint64_t{blockIdx.x} * chunks + chunk) * head_dim + dim]);
        mean[dim] = static_cast<float>(sum);
        mine += sum * sum;
    }
    squares[threadIdx.x] = mine;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) squares[threadIdx.x] += squares[threadIdx.x + half];
    }
    __syncthreads();
    double const norm = sqrt(squares[0]);
    if (norm == 0) return;
    for (std::uint32_t dim = threadIdx.x; dim < head_dim; dim += kThreads)
        mean[dim] = static_cast<float>(static_cast<double>(mean[dim]) / norm);
}

unsigned lanes_for(std::uint32_t pieces) {
    unsigned lanes = 1;
    while (lanes < kWarpLanes && lanes < pieces)
        lanes *= 2;
    return lanes;
}

/// One call, with the keys as its kernels read them.
class KeyScore {
public:
    KeyScore(KeyScoreArgs const& args, Queue& queue) : args_(args), queue_(queue) {}

    template <class Keys>
    Result<void> run(Keys const& keys) {
        if (args_.measure == KeyMeasure::Norm)
            return measure<Measure::Norm>(keys, columns(), nullptr, args_.scores.data());
        float* const means =
            DKV_TRY(queue_.scratch<float>(std::size_t{args_.keys.heads} * args_.keys.head_dim));
        Shape shape = shape_of(keys, args_.keys.tokens);
        // Chunks depend on the shape alone, and so does the order of additions.
        shape.chunk_tokens = std::max(kChunkLeast, (shape.tokens - 1) / kChunksMax + 1);
        shape.per_head = (shape.tokens - 1) / shape.chunk_tokens + 1;
        std::uint64_t const blocks = std::uint64_t{shape.heads} * shape.per_head;
        unsigned const grid = DKV_TRY(grid_of(blocks));
        float* const partials = DKV_TRY(queue_.scratch<float>(blocks * shape.head_dim));
        DKV_TRY(directions(keys, shape, grid, partials));
        DKV_TRY(launch(means_kernel, shape.heads, kThreads, 0, queue_.stream(),
                       static_cast<float const*>(partials), shape.per_head, shape.head_dim, means,
                       fault()));
        return measure<Measure::Cosine>(keys, columns(), means, args_.scores.data());
    }

private:
    std::uint32_t columns() const { return args_.keys.tokens - args_.window; }
    Fault const* fault() const { return queue_.fault(); }

    template <class Keys>
    Shape shape_of(Keys const& keys, std::uint32_t tokens) const {
        return {args_.keys.heads,       tokens, tokens, args_.keys.head_dim,
                lanes_for(keys.pieces), 0,      0};
    }

    template <Measure kMeasure, class Keys>
    Result<void> measure(Keys const& keys, std::uint32_t tokens, float const* means, float* out) {
        Shape shape = shape_of(keys, tokens);
        std::uint32_t const at_once = kThreads / shape.lanes * kKeysPerLanes;
        shape.per_head = (tokens - 1) / at_once + 1;
        unsigned const grid = DKV_TRY(grid_of(std::uint64_t{shape.heads} * shape.per_head));
        return launch(measure_kernel<Keys, kMeasure>, grid, kThreads, 0, queue_.stream(), keys,
                      shape, means, out, fault());
    }

    template <Dtype kDtype>
    Result<void> directions(WideKeys<kDtype> const& keys,
                            Shape const& shape,
                            unsigned grid,
                            float* partials) {
        auto* const kernel = keys.pieces <= kWarpLanes ? directions_kernel<WideKeys<kDtype>, 1>
                                                       : directions_kernel<WideKeys<kDtype>, 2>;
        return launch(kernel, grid, kThreads, 0, queue_.stream(), keys, shape, partials, fault());
    }
    Result<void> directions(AnyKeys const& keys,
                            Shape const& shape,
                            unsigned grid,
                            float* partials) {
        std::size_t const all = std::size_t{shape.heads} * shape.tokens;
        float* const norms = DKV_TRY(queue_.scratch<float>(all));
        DKV_TRY(measure<Measure::PlainNorm>(keys, shape.tokens, nullptr, norms));
        return launch(any_directions_kernel, grid, kThreads, 0, queue_.stream(), keys, shape,
                      static_cast<float const*>(norms), partials, fault());
    }

    KeyScoreArgs const& args_;
    Queue& queue_;
};

}  // namespace

Result<void> key_score(KeyScoreArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    RowsView const& keys = args.keys;
    if (keys.place != Place::Device)
        return Error{ErrorCode::InvalidArgument, "keys are in host memory"};
    if (args.scores.empty()) return {};
    queue.begin();
    DKV_TRY(check_blocks_later(keys, queue));
    RowsOnDevice const rows = rows_on_device(keys);
    std::uint64_t const element = bytes_of(keys.dtype);
    std::uint64_t const word = word_bytes(keys);
    constexpr std::uint64_t kPiecesMax = 2 * kWarpLanes;  // What directions_kernel holds.
    std::uint64_t const pieces = keys.row_bytes() / sizeof(uint4);
    KeyScore op(args, queue);
    if (word != sizeof(uint4) || rows.dim_bytes != element || pieces > kPiecesMax)
        return op.run(AnyKeys{rows, keys.head_dim, keys.dtype, word >= element});
    auto const wide = static_cast<std::uint32_t>(pieces);
    switch (keys.dtype) {
        case Dtype::F32: return op.run(WideKeys<Dtype::F32>{rows, wide});
        case Dtype::F16: return op.run(WideKeys<Dtype::F16>{rows, wide});
        case Dtype::Bf16: return op.run(WideKeys<Dtype::Bf16>{rows, wide});
    }
    return {};
}

}  // namespace dkv::cuda
