// Tiles of keys in shared memory, and their products with a pass's queries. For .cu files.
//
// Products come as fragments c of mma.m16n8k16 (see primitives.h), for tensor cores and plain code
// alike: acc[m][n][i] is row 16 m + g + 8 (i / 2) of what is held, column 8 n + 2 t + i % 2 of what
// passes by, g = lane / 4 and t = lane % 4.
#pragma once

#include <cfloat>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/primitives.h"
#include "kernels/cuda/score_pass.h"

namespace dkv::cuda {

// --- single elements ---

/// 16 bits from any address.
__device__ inline std::uint32_t load_bits16(unsigned char const* element) {
    if (reinterpret_cast<std::uintptr_t>(element) % 2 == 0)
        return *reinterpret_cast<std::uint16_t const*>(element);
    return element[0] | static_cast<std::uint32_t>(element[1]) << 8U;
}

/// Widened to f32, from any address.
__device__ inline float load_f32(unsigned char const* element, Dtype dtype) {
    if (dtype == Dtype::F32) {
        if (reinterpret_cast<std::uintptr_t>(element) % 4 == 0)
            return *reinterpret_cast<float const*>(element);
        return __uint_as_float(load_bits16(element) | load_bits16(element + 2) << 16U);
    }
    std::uint32_t const bits = load_bits16(element);
    if (dtype == Dtype::Bf16) return __uint_as_float(bits << 16U);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// --- products ---

/// On tensor cores: head_dim up to 16 * kSteps, the rest zeros. What is held is in registers.
template <unsigned kStepsOfHeadDim>
class MmaProducts {
public:
    static constexpr unsigned kSteps = kStepsOfHeadDim;
    static constexpr unsigned kTiles = kSteps <= 8 ? 2 : 1;  ///< Of 16 rows that a warp holds.
    static constexpr bool kHoldsKeys = true;  ///< A held tile's memory is free again.
    using Element = std::uint16_t;

    __host__ __device__ MmaProducts(PassShape const& /*shape*/, Products products)
        : bf16_(products == Products::Bf16) {}

    // A tile row in shared memory: 16 bytes more than the elements, so that eight rows' pieces of
    // 16 bytes lie in different banks.
    __host__ __device__ static constexpr unsigned key_elements() { return 16 * kSteps; }
    __host__ __device__ static constexpr unsigned key_stride() { return 32 * kSteps + 16; }
    /// Packed: 16 rows as fragments a, step after step, lane after lane.
    __host__ __device__ static constexpr std::uint64_t packed_bytes(std::uint64_t rows) {
        return rows * 32 * kSteps;
    }

    __device__ static void store_key(unsigned char* at, unsigned char const* from, Dtype) {
        *reinterpret_cast<std::uint16_t*>(at) = static_cast<std::uint16_t>(load_bits16(from));
    }
    __device__ static void zero_key(unsigned char* at) {
        *reinterpret_cast<std::uint16_t*>(at) = 0;
    }

    /// Holds packed rows from `rows` on.
    __device__ void hold_rows(unsigned char const* rows, unsigned lane) {
        auto const* const words = reinterpret_cast<uint4 const*>(rows) + lane;
#pragma unroll
        for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
            for (unsigned step = 0; step < kSteps; ++step)
                take(held_[m][step], __ldg(words + (m * kSteps + step) * 32));
    }

    /// Holds a tile's keys from `keys` on.
    __device__ void hold_keys(unsigned char const* keys, unsigned lane) {
        // Matrices: keys 0-7 and 8-15 of the first eight dimensions, then of the other eight.
        unsigned char const* const row = keys + (lane % 16) * key_stride() + lane / 16 * 16;
#pragma unroll
        for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
            for (unsigned step = 0; step < kSteps; ++step)
                load_matrices(held_[m][step], row + m * 16 * key_stride() + step * 32);
    }

    /// acc = held rows · the 16 keys at `keys`.
    __device__ void pass_keys(float (&acc)[kTiles][2][4],
                              unsigned char const* keys,
                              unsigned lane) const {
        // Matrices: keys 0-7, both halves of 16 dimensions, then keys 8-15.
        unsigned char const* const row =
            keys + (lane / 16 * 8 + lane % 8) * key_stride() + lane / 8 % 2 * 16;
        if (bf16_)
            pass<true>(acc, [&](std::uint32_t(&b)[4], unsigned step) {
                load_matrices(b, row + step * 32);
            });
        else
            pass<false>(acc, [&](std::uint32_t(&b)[4], unsigned step) {
                load_matrices(b, row + step * 32);
            });
    }

    /// acc = held keys · the 16 packed rows at `rows`.
    __device__ void pass_rows(float (&acc)[kTiles][2][4],
                              unsigned char const* rows,
                              unsigned lane) const {
        auto const* const words = reinterpret_cast<uint4 const*>(rows) + lane;
        // Two fragments b are one fragment a: rows 0-7 are its words 0 and 2.
        auto const fetch = [&](std::uint32_t(&b)[4], unsigned step) {
            uint4 const a = __ldg(words + step * 32);
            b[0] = a.x;
            b[1] = a.z;
            b[2] = a.y;
            b[3] = a.w;
        };
        if (bf16_)
            pass<true>(acc, fetch);
        else
            pass<false>(acc, fetch);
    }

private:
    __device__ static void take(std::uint32_t (&out)[4], uint4 const& words) {
        out[0] = words.x;
        out[1] = words.y;
        out[2] = words.z;
        out[3] = words.w;
    }

    template <bool kBf16, class Fetch>
    __device__ void pass(float (&acc)[kTiles][2][4], Fetch const& fetch) const {
#pragma unroll
        for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
            for (unsigned i = 0; i < 8; ++i)
                acc[m][i / 4][i % 4] = 0;
#pragma unroll
        for (unsigned step = 0; step < kSteps; ++step) {
            std::uint32_t b[4];
            fetch(b, step);
#pragma unroll
            for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
                for (unsigned n = 0; n < 2; ++n) {
                    if constexpr (kBf16)
                        mma_bf16(acc[m][n], held_[m][step], b[2 * n], b[2 * n + 1]);
                    else
                        mma_f16(acc[m][n], held_[m][step], b[2 * n], b[2 * n + 1]);
                }
        }
    }

    std::uint32_t held_[kTiles][kSteps][4];
    bool bf16_;
};

/// By fused multiply-adds, for any dtype and head_dim. What is held is a pointer.
class FmaProducts {
public:
    static constexpr unsigned kTiles = 2;
    static constexpr bool kHoldsKeys = false;
    using Element = float;

    __host__ __device__ FmaProducts(PassShape const& shape, Products /*products*/)
        : quads_((shape.head_dim + 3) / 4) {}

    __host__ __device__ unsigned key_elements() const { return 4 * quads_; }
    __host__ __device__ unsigned key_stride() const { return 16 * quads_ + 16; }
    /// Packed: rows as they are, widened.
    __host__ __device__ std::uint64_t packed_bytes(std::uint64_t rows) const {
        return rows * 16 * quads_;
    }

    __device__ static void store_key(unsigned char* at, unsigned char const* from, Dtype dtype) {
        *reinterpret_cast<float*>(at) = load_f32(from, dtype);
    }
    __device__ static void zero_key(unsigned char* at) { *reinterpret_cast<float*>(at) = 0; }

    __device__ void hold_rows(unsigned char const* rows, unsigned lane) {
        held_ = rows + packed_bytes(lane / 4);
    }
    __device__ void hold_keys(unsigned char const* keys, unsigned lane) {
        held_ = keys + lane / 4 * key_stride();
    }
    __device__ void pass_keys(float (&acc)[kTiles][2][4],
                              unsigned char const* keys,
                              unsigned lane) const {
        pass(acc, 16 * quads_, keys + lane % 4 * 2 * key_stride(), key_stride());
    }
    __device__ void pass_rows(float (&acc)[kTiles][2][4],
                              unsigned char const* rows,
                              unsigned lane) const {
        pass(acc, key_stride(), rows + packed_bytes(lane % 4 * 2), 16 * quads_);
    }

private:
    __device__ void pass(float (&acc)[kTiles][2][4],
                         unsigned held_stride,
                         unsigned char const* by,
                         unsigned by_stride) const {
#pragma unroll
        for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
            for (unsigned i = 0; i < 8; ++i)
                acc[m][i / 4][i % 4] = 0;
#pragma unroll 1
        for (unsigned quad = 0; quad < quads_; ++quad) {
            float4 columns[4];  // n = 0: two, n = 1: two.
#pragma unroll
            for (unsigned i = 0; i < 4; ++i)
                columns[i] = *reinterpret_cast<float4 const*>(by + quad * 16 +
                                                              (i / 2 * 8 + i % 2) * by_stride);
#pragma unroll
            for (unsigned m = 0; m < kTiles; ++m)
#pragma unroll
                for (unsigned half = 0; half < 2; ++half) {
                    float4 const row = *reinterpret_cast<float4 const*>(
                        held_ + quad * 16 + (m * 16 + half * 8) * held_stride);
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) {
                        float& sum = acc[m][i / 2][half * 2 + i % 2];
                        sum = fmaf(row.x, columns[i].x, sum);
                        sum = fmaf(row.y, columns[i].y, sum);
                        sum = fmaf(row.z, columns[i].z, sum);
                        sum = fmaf(row.w, columns[i].w, sum);
                    }
                }
        }
    }

    unsigned quads_;
    unsigned char const* held_ = nullptr;
};

// --- tiles ---

/// Begins to copy tokens [first, first + count) of a head into `tile`; zeros from token `end` on
/// and beyond head_dim. A group of copies is left open.
template <class Engine>
__device__ void load_tile(Engine const& engine,
                          PassRows const& keys,
                          std::uint32_t head,
                          std::uint32_t first,
                          std::uint32_t count,
                          std::uint32_t end,
                          unsigned char* tile) {
    using Element = typename Engine::Element;
    if (keys.wide) {
        constexpr unsigned per_piece = 16 / sizeof(Element);
        unsigned const pieces = engine.key_elements() / per_piece;
        unsigned const filled = keys.head_dim / per_piece;
        for (unsigned i = threadIdx.x; i < count * pieces; i += kPassThreads) {
            unsigned const token = i / pieces;
            unsigned const piece = i % pieces;
            bool const present = token < end - first && piece < filled;
            copy_16_async(tile + token * engine.key_stride() + piece * 16,
                          present ? keys.at.row(head, first + token) + piece * 16 : keys.at.data,
                          present);
        }
        return;
    }
    // Neighbours in memory to neighbouring threads.
    unsigned const elements = engine.key_elements();
    bool const by_token = keys.at.token_bytes < keys.at.dim_bytes;
    for (unsigned i = threadIdx.x; i < count * elements; i += kPassThreads) {
        unsigned const token = by_token ? i % count : i / elements;
        unsigned const dim = by_token ? i / count : i % elements;
        unsigned char* const at = tile + token * engine.key_stride() + dim * sizeof(Element);
        if (token < end - first && dim < keys.head_dim)
            Engine::store_key(at, keys.at.row(head, first + token) + dim * keys.at.dim_bytes,
                              keys.dtype);
        else
            Engine::zero_key(at);
    }
}

// --- logits ---

/// The last place in the window that any of `count` rows from `place` on has.
__device__ inline std::uint32_t last_place(PassShape const& shape,
                                           std::uint32_t place,
                                           std::uint32_t count) {
    return min(place + count, shape.window_rows) - 1;  // Beyond it the next head's begin at 0.
}

/// tanh, to 2e-7: below 5/8 by a polynomial, fitted at Chebyshev's nodes, since 1 - 2 / (1 + e^2x)
/// loses the small numbers' digits.
__device__ inline float tanh_f32(float x) {
    float const size = fabsf(x);
    float const far =
        1.0F - __fdividef(2.0F, 1.0F + exp2_approx(fminf(size, 20.0F) * (2 * kLog2E)));
    float const z = x * x;
    float near = fmaf(-6.104918662e-3F, z, 2.100361511e-2F);
    near = fmaf(near, z, -5.385249108e-2F);
    near = fmaf(near, z, 1.333278269e-1F);
    near = fmaf(near, z, -3.333332837e-1F);
    return size < 0.625F ? fmaf(x * z, near, x) : copysignf(far, x);
}

__device__ inline float clamped(float x) {
    return fminf(fmaxf(x, -FLT_MAX), FLT_MAX);
}

/// Products become logits to base 2. NaN counts as the smallest finite number, the infinities as
/// the nearest one.
template <unsigned kTiles>
__device__ void take_logits(PassShape const& shape, float (&acc)[kTiles][2][4]) {
#pragma unroll
    for (auto& tile : acc)
#pragma unroll
        for (auto& fragment : tile)
#pragma unroll
            for (float& each : fragment)
                each = clamped(each * shape.scale);
    if (shape.softcap == 0) return;
#pragma unroll
    for (auto& tile : acc)
#pragma unroll
        for (auto& fragment : tile)
#pragma unroll
            for (float& each : fragment)
                each = clamped(tanh_f32(each * shape.inverse_softcap) * shape.softcap * kLog2E);
}

/// Runs f(Engine) with the engine for this pass.
template <class Function>
auto with_engine(Products products, PassShape const& shape, Function const& f) {
    if (products == Products::F32) return f(FmaProducts(shape, products));
    if (shape.head_dim <= 64) return f(MmaProducts<4>(shape, products));
    if (shape.head_dim <= 80) return f(MmaProducts<5>(shape, products));
    if (shape.head_dim <= 96) return f(MmaProducts<6>(shape, products));
    if (shape.head_dim <= 128) return f(MmaProducts<8>(shape, products));
    return f(MmaProducts<16>(shape, products));
}

}  // namespace dkv::cuda
