// How key_score's kernels read keys. A few neighbouring lanes of a warp share a key: 16-byte words
// where every row is a whole number of those (WideKeys), else single elements, aligned or not
// (AnyKeys). For .cu files.
#pragma once

#include <cstdint>

#include <cuda_fp16.h>

#include "kernels/cuda/gather_rows.h"
#include "protocol/base/dtype.h"

namespace dkv::cuda {

__device__ __forceinline__ float f32_of_half(std::uint32_t bits) {
    __half_raw raw{};
    raw.x = static_cast<unsigned short>(bits);
    return __half2float(__half(raw));
}

/// The f32 values of the 4 bytes `word`: one, or two.
template <Dtype kDtype>
__device__ __forceinline__ void widen_word(std::uint32_t word, float* out) {
    if constexpr (kDtype == Dtype::F32) {
        out[0] = __uint_as_float(word);
    } else if constexpr (kDtype == Dtype::F16) {
        out[0] = f32_of_half(word & 0xffffU);
        out[1] = f32_of_half(word >> 16U);
    } else {
        out[0] = __uint_as_float(word << 16U);
        out[1] = __uint_as_float(word & 0xffff0000U);
    }
}

/// A row is `pieces` pieces of kElements; lane l of `lanes` has the pieces l, l + lanes, …
template <Dtype kDtype>
struct WideKeys {
    static constexpr unsigned kElements = kDtype == Dtype::F32 ? 4 : 8;
    using Piece = uint4;

    RowsOnDevice rows;
    std::uint32_t pieces;

    __device__ __forceinline__ Piece load(std::uint32_t head,
                                          std::uint32_t token,
                                          std::uint32_t piece) const {
        return reinterpret_cast<uint4 const*>(rows.row(head, token))[piece];
    }
    static __device__ __forceinline__ void widen(Piece const& piece, float (&out)[kElements]) {
        constexpr unsigned kPerWord = kElements / 4;
        widen_word<kDtype>(piece.x, out);
        widen_word<kDtype>(piece.y, out + kPerWord);
        widen_word<kDtype>(piece.z, out + 2 * kPerWord);
        widen_word<kDtype>(piece.w, out + 3 * kPerWord);
    }
};

struct AnyKeys {
    static constexpr unsigned kElements = 1;
    using Piece = float;

    RowsOnDevice rows;
    std::uint32_t pieces;
    Dtype dtype;
    bool aligned;  // Every element to its size.

    __device__ __forceinline__ Piece load(std::uint32_t head,
                                          std::uint32_t token,
                                          std::uint32_t piece) const {
        unsigned char const* const at = rows.row(head, token) + piece * rows.dim_bytes;
        std::uint32_t bits = 0;
        if (dtype == Dtype::F32)
            bits = aligned ? *reinterpret_cast<std::uint32_t const*>(at)
                           : at[0] | std::uint32_t{at[1]} << 8U | std::uint32_t{at[2]} << 16U |
                                 std::uint32_t{at[3]} << 24U;
        else
            bits = aligned ? *reinterpret_cast<std::uint16_t const*>(at)
                           : at[0] | std::uint32_t{at[1]} << 8U;
        if (dtype == Dtype::F32) return __uint_as_float(bits);
        return dtype == Dtype::F16 ? f32_of_half(bits) : __uint_as_float(bits << 16U);
    }
    static __device__ __forceinline__ void widen(Piece piece, float (&out)[1]) { out[0] = piece; }
};

/// Σ over `lanes` neighbouring lanes, in one order, to each of them.
__device__ __forceinline__ float sum_of_lanes(float value, unsigned lanes) {
    for (unsigned step = lanes / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(kAllLanes, value, static_cast<int>(step));
    return value;
}

/// Neither NaN nor infinite: other keys score lowest and have no direction.
__device__ __forceinline__ bool is_number(float norm) {
    return norm <= 3.402823466e+38F;
}

}  // namespace dkv::cuda
