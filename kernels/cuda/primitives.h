// The instructions that C++ has no words for, each with a plain C++ body for the emulation. Nothing
// else here is inline PTX.
//
// Lanes below: g = lane / 4 ("groupID"), t = lane % 4 ("threadID_in_group"), as the PTX ISA's
// "Matrix Fragments for mma.m16n8k16 with floating point type" names them.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

#ifdef CUDAEMU
#include <cmath>
#include <cstring>
#endif

namespace dkv::cuda {

#ifdef CUDAEMU
namespace emulated {

inline float f32_from_f16(std::uint32_t bits) {
    std::uint32_t const sign = (bits & 0x8000U) << 16U;
    std::uint32_t const exponent = (bits >> 10U) & 31U;
    std::uint32_t const fraction = bits & 1023U;
    if (exponent == 0) {  // Zero or subnormal.
        float const size = static_cast<float>(fraction) * 0x1p-24F;
        return sign != 0 ? -size : size;
    }
    std::uint32_t const widened = exponent == 31 ? 255 : exponent + 112;
    return __uint_as_float(sign | widened << 23U | fraction << 13U);
}

/// The lower and the upper half of a word.
template <bool kBf16>
void widen(std::uint32_t pair, float& low, float& high) {
    if constexpr (kBf16) {
        low = __uint_as_float(pair << 16U);
        high = __uint_as_float(pair & 0xffff0000U);
    } else {
        low = f32_from_f16(pair & 0xffffU);
        high = f32_from_f16(pair >> 16U);
    }
}

/// What a lane gives to a product.
struct Fragments {
    std::uint32_t a[4];
    std::uint32_t b[2];
    float c[4];
};

/// The warp's product, from the matrices that the fragments are of.
template <bool kBf16>
void multiply(cudaemu::LaneBytes all, std::byte (*out)[cudaemu::kLaneBytes]) {
    float a[16][16];
    float b[16][8];
    float c[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        Fragments own;
        std::memcpy(&own, all[lane], sizeof own);
        unsigned const g = lane / 4;
        unsigned const t = lane % 4;
        for (unsigned i = 0; i < 4; ++i) {
            unsigned const row = g + i % 2 * 8;
            unsigned const column = 2 * t + i / 2 * 8;
            widen<kBf16>(own.a[i], a[row][column], a[row][column + 1]);
        }
        for (unsigned i = 0; i < 2; ++i)
            widen<kBf16>(own.b[i], b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]);
        for (unsigned i = 0; i < 4; ++i)
            c[g + i / 2 * 8][2 * t + i % 2] = own.c[i];
    }
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned k = 0; k < 16; ++k)
            for (unsigned column = 0; column < 8; ++column)
                c[row][column] += a[row][k] * b[k][column];
    for (unsigned lane = 0; lane < 32; ++lane)
        for (unsigned i = 0; i < 4; ++i)
            std::memcpy(out[lane] + 4 * i, &c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2], 4);
}

template <bool kBf16>
void mma(float (&c)[4],
         std::uint32_t const (&a)[4],
         std::uint32_t b0,
         std::uint32_t b1,
         cudaemu::Place place) {
    Fragments const mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    cudaemu::collective(&mine, sizeof mine, c, sizeof c, multiply<kBf16>, "mma.sync", place);
}

}  // namespace emulated
#endif

/// c [16, 8] += a [16, 16] · b [16, 8], all lanes of a warp together; of each lane
///
///   a[0] (g, 2t) (g, 2t + 1)          a[1] (g + 8, 2t) (g + 8, 2t + 1)
///   a[2] (g, 2t + 8) (g, 2t + 9)      a[3] (g + 8, 2t + 8) (g + 8, 2t + 9)
///   b0   (2t, g) (2t + 1, g)          b1   (2t + 8, g) (2t + 9, g)
///   c[0] (g, 2t)   c[1] (g, 2t + 1)   c[2] (g + 8, 2t)   c[3] (g + 8, 2t + 1)
///
/// with (row, column) of its matrix, the first of a pair in the lower half of the word.
__device__ inline void mma_f16(float (&c)[4],
                               std::uint32_t const (&a)[4],
                               std::uint32_t b0,
                               std::uint32_t b1) {
#ifdef CUDAEMU
    emulated::mma<false>(c, a, b0, b1, cudaemu::Place::current());
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// The same of bf16.
__device__ inline void mma_bf16(float (&c)[4],
                                std::uint32_t const (&a)[4],
                                std::uint32_t b0,
                                std::uint32_t b1) {
#ifdef CUDAEMU
    emulated::mma<true>(c, a, b0, b1, cudaemu::Place::current());
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// Four matrices [8, 8] of 16-bit elements from shared memory (ldmatrix.x4): lane l names row l % 8
/// of matrix l / 8, 16 bytes at a multiple of 16; out[i] is (g, 2t) (g, 2t + 1) of matrix i.
__device__ inline void load_matrices(std::uint32_t (&out)[4], void const* row) {
#ifdef CUDAEMU
    auto const mine = reinterpret_cast<std::uintptr_t>(row);
    if (mine % 16 != 0) cudaemu::fail("ldmatrix of a misaligned row");
    if (!cudaemu::is_shared(row, 16)) cudaemu::fail("ldmatrix of memory that is not shared");
    auto const rows = cudaemu::exchange(kAllLanes, &mine, sizeof mine, {"ldmatrix"});
    unsigned const lane = cudaemu::self->lane;
    for (unsigned i = 0; i < 4; ++i) {
        auto const from = rows.of<std::uintptr_t>(8 * i + lane / 4);
        std::memcpy(&out[i], reinterpret_cast<std::byte const*>(from) + lane % 4 * 4, 4);
    }
#else
    auto const address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
#endif
}

/// Begins to copy 16 bytes from global to shared memory, or, not `present`, 16 zeros; then nothing
/// is read. Both at multiples of 16. Seen by this thread after wait_copies(), by the others after a
/// barrier behind that.
__device__ inline void copy_16_async(void* shared, void const* global, bool present) {
#ifdef CUDAEMU
    cudaemu::async_copy(shared, global, 16, present ? 16 : 0);
#else
    auto const address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
#endif
}

/// Closes a group of copies: those begun since the last one.
__device__ inline void commit_copies() {
#ifdef CUDAEMU
    cudaemu::commit_group();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until of this thread's groups at most the last kPending are under way.
template <int kPending>
__device__ inline void wait_copies() {
#ifdef CUDAEMU
    cudaemu::wait_group(kPending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/// 2^x, to 2 units in the last place; a subnormal result is 0.
__device__ inline float exp2_approx(float x) {
#ifdef CUDAEMU
    return std::exp2(x);
#else
    float power = 0;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

}  // namespace dkv::cuda
