// One warp that runs each primitive of kernels/cuda/primitives.h on what a test gives it. Matrices
// are row-major, their 16-bit elements as bits. Errors: those of a device.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv::test {

using Bits = std::vector<std::uint16_t>;

/// c [16, 8] + a [16, 16] · b [16, 8], each lane's fragments taken from where the PTX ISA says.
Result<std::vector<float>> product(Dtype dtype,
                                   Bits const& a,
                                   Bits const& b,
                                   std::vector<float> const& c);

/// The same of b's transpose [8, 16], both operands by way of shared memory and load_matrices().
Result<std::vector<float>> product_of_rows(Dtype dtype, Bits const& a, Bits const& b_transposed);

/// What lane l gets of four matrices [8, 8] is out[l * 8 + i * 2 + (0, 1)].
Result<Bits> loaded(Bits const& matrices);

/// Pieces of 16 bytes copied by lanes of their own, zeros where not `present`: what is in shared
/// memory when the first of two groups, even pieces and odd ones, is there, and when both are.
struct Copied {
    std::vector<std::uint32_t> first;  ///< Of the even pieces.
    std::vector<std::uint32_t> both;
};
Result<Copied> copied(std::vector<std::uint32_t> const& words,
                      std::vector<std::uint32_t> const& present);

Result<std::vector<float>> powers(std::vector<float> const& exponents);

}  // namespace dkv::test
