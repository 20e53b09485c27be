#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"

namespace dkv {

/// Attention below this counts as this.
inline constexpr float kAttentionLeast = 0x1p-20F;

/// Positions whose angles one row of turns() covers.
inline constexpr std::uint32_t kTurnBlock = 64;

/// Weights of one KV head: K and V of every KV head, the logarithms of their norms, a constant.
constexpr std::uint64_t surrogate_features(std::uint64_t kv_heads,
                                           std::uint64_t head_dim) noexcept {
    return 2 * kv_heads * head_dim + 2 * kv_heads + 1;
}

/// Cosines and sines of position * frequency, [kTurnBlock + ceil(tokens / kTurnBlock), 2, pairs]:
/// of the positions of a block, then of where the blocks begin. An op multiplies the two.
std::vector<float> turns(std::span<float const> frequencies, std::uint32_t tokens);

/// Predicts the logarithm of how much later text will attend to each token, from its K and V alone,
/// or takes what the prompt's own attention says where that is more; the largest are to be kept.
///
///   keys      [kv_heads, tokens, head_dim]   any dtype, strides and blocks; read once
///   values    [kv_heads, tokens, head_dim]   of the same dtype; read once
///   weights   [kv_heads, features]           f32: see surrogate_features()
///   turns     as turns() gives them          f32; empty: keys are not rotated
///   attention [kv_heads, tokens - window]    f32, read; empty: none. Another array than scores.
///   scores    [kv_heads, tokens - window]    f32, written
///
///   score_h(t) = w_h · [R_t⁻¹ k_t of every head; v_t of every head; ln ‖k_t‖; ln ‖v_t‖; 1]
///   where there is attention: the larger of that and ln(max(attention_h(t), 2⁻²⁰))
///
/// R_t turned dims (i, i + pairs) of a key, or (2i, 2i + 1) where interleaved, by t * frequency_i;
/// dims from 2 * pairs on were not turned. ln ‖x‖ is ln(max(Σ x², 2⁻⁴⁰)) / 2. Sums are f32. A
/// prediction that is not finite makes the score NaN: select then ranks the token last.
struct SurrogateArgs {
    RowsView keys;
    RowsView values;
    std::span<float const> weights;
    std::span<float const> turns;
    std::span<float const> attention = {};
    std::span<float> scores;
    std::uint32_t window = 0;
    std::uint32_t pairs = 0;
    bool interleaved = false;
};

/// Errors: InvalidArgument when shapes, dtypes, places or sizes disagree with the table above,
/// there are no heads or dimensions, window exceeds tokens, or pairs exceeds head_dim / 2.
Result<void> check(SurrogateArgs const& args);

}  // namespace dkv
