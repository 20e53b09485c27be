// The vector arithmetic of `surrogate`, compiled for several instruction sets and chosen at run
// time.
#pragma once

#include <cstdint>

#include "kernels/ops/surrogate.h"

namespace dkv::cpu {

/// Floats of a row as it is held: whole vectors, zeros behind the last dimension.
constexpr std::size_t surrogate_row(std::size_t head_dim) noexcept {
    return (head_dim + 15) / 16 * 16;
}

/// Tokens that are held at a time.
inline constexpr std::uint32_t kSurrogateTokens = 4;

/// What a worker needs beside the weights, in floats.
constexpr std::size_t surrogate_memory(SurrogateArgs const& args) noexcept {
    std::size_t const rows = 2 * std::size_t{args.keys.heads};
    return kSurrogateTokens * rows * surrogate_row(args.keys.head_dim) +  // K and V
           2 * surrogate_row(args.keys.head_dim) +                        // cosines, sines
           (kSurrogateTokens * rows + 15) / 16 * 16;                      // norms
}

/// Scores tokens begin … end - 1. `rows` [kv_heads, 2 * kv_heads, surrogate_row] are the weights of
/// K and V, zeros behind the last dimension; `memory` [surrogate_memory], aligned to 64 bytes, was
/// zeroed before its first use.
void surrogate_scores(SurrogateArgs const& args,
                      std::uint32_t begin,
                      std::uint32_t end,
                      float const* rows,
                      float* memory);

}  // namespace dkv::cpu
