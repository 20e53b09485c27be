// The baselines as they were published: KVCache-Factory's SnapKV, PyramidKV and StreamingLLM (per
// query head), kvpress's SnapKV and H2O (per KV head). What each keeps, given pooled scores.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv::reference {

/// Prefix tokens per layer, or nothing when the prompt is kept whole.
using LayerBudgets = std::optional<std::vector<std::uint32_t>>;

/// What KVCache-Factory's clusters are set up with.
struct ClusterParams {
    std::uint32_t layers = 0;         ///< L
    std::uint32_t prompt_tokens = 0;  ///< n
    std::uint32_t capacity = 0;       ///< cap, window included.
    std::uint32_t window = 0;         ///< ws
    std::uint32_t beta = 20;          ///< pyramidkv: mean budget over the last layer's.

    std::uint32_t base() const noexcept { return capacity - window; }
};

/// SnapKV: base in every layer; a prompt below the capacity is kept whole.
///
/// Errors: InvalidArgument, naming the value: layers or window 0, capacity not above window.
Result<LayerBudgets> snapkv_ref_budgets(ClusterParams const& params);

/// PyramidKV: from `max` down by an integer step, which spends more than base * L where the step
/// was rounded down. A prompt below the capacity is kept whole, one below 2 * base gets base
/// everywhere.
///
/// Errors: those of snapkv_ref_budgets; InvalidArgument for beta 0 and for a single layer, where
/// the published code divides by zero.
Result<LayerBudgets> pyramidkv_ref_budgets(ClusterParams const& params);

/// Each head's `budget` best prefix tokens by falling score, in torch's order, then the window.
///
///   pooled   [heads, prefix]
///   returns  [heads], each budget + window positions
///
/// Errors: InvalidArgument when the scores do not divide into heads, or budget exceeds the prefix.
Result<std::vector<std::vector<std::int32_t>>> select_ref(std::span<float const> pooled,
                                                          std::uint32_t heads,
                                                          std::uint32_t budget,
                                                          std::uint32_t window);

/// kvpress's SnapKV: max(1, int(n * (1 - ratio))) tokens of all n, the window's among them with the
/// largest score of any head. The window is not set apart: of what equals that score, torch's order
/// decides what stays, so that a ratio that leaves less than the window cuts into it.
///
///   pooled   [kv_heads, prefix]  the mean over each group, after pooling (group_mean)
///   returns  [kv_heads], each the positions kept by falling score
///
/// A ratio of 0 keeps everything, by position.
/// Errors: InvalidArgument for a ratio outside [0, 1), a window of 0, and no prefix.
Result<std::vector<std::vector<std::int32_t>>> select_snapkv_kvpress(std::span<float const> pooled,
                                                                     std::uint32_t kv_heads,
                                                                     std::uint32_t window,
                                                                     double compression_ratio);

/// KVCache-Factory's StreamingLLM: the first capacity - window positions and the last window; a
/// prompt below the capacity is kept whole.
///
/// Errors: those of snapkv_ref_budgets.
Result<std::vector<std::int32_t>> streamingllm_ref(ClusterParams const& params);

/// kvpress's form of H2O (its observed attention): what every query gives to each token, divided by
/// the number of queries that see it, meaned over the group; the best max(1, int(n * (1 - ratio)))
/// of all n tokens. No window is set apart.
///
///   sums     [q_heads, tokens]  over all queries, as attention_sums gives them
///   returns  [kv_heads], each the positions kept by falling score
///
/// A ratio of 0 keeps everything, by position.
/// Errors: InvalidArgument for a ratio outside [0, 1), and heads that do not divide the sums.
Result<std::vector<std::vector<std::int32_t>>> select_h2o_kvpress(std::span<float const> sums,
                                                                  std::uint32_t q_heads,
                                                                  std::uint32_t kv_heads,
                                                                  Dtype dtype,
                                                                  double compression_ratio);

}  // namespace dkv::reference
