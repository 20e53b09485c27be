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
inline constexpr std::uint32_t kSurrogateTokens = 16;

/// Floats of one token's norms as they are held, and of their weights.
constexpr std::size_t surrogate_norms(std::size_t heads) noexcept {
    return surrogate_row(2 * heads);
}

/// Floats of one head's weights as they are held: a row for K and V of each head, then the norms'.
constexpr std::size_t surrogate_weights(std::size_t heads, std::size_t head_dim) noexcept {
    return 2 * heads * surrogate_row(head_dim) + surrogate_norms(heads);
}

/// Floats that a worker needs beside the weights: a row of every token, its cosines and sines, its
/// norms, and a vector of sums per head and token.
constexpr std::size_t surrogate_memory(std::size_t heads, std::size_t head_dim) noexcept {
    return kSurrogateTokens * (3 * surrogate_row(head_dim) + surrogate_norms(heads) + 16 * heads);
}

/// Scores tokens begin … end - 1. `weights` [kv_heads, surrogate_weights] have zeros behind
/// the last element of each row; `memory` [surrogate_memory], aligned to 64 bytes, was
/// zeroed before its first use.
void surrogate_scores(SurrogateArgs const& args,
                      std::uint32_t begin,
                      std::uint32_t end,
                      float const* weights,
                      float* memory);

}  // namespace dkv::cpu
