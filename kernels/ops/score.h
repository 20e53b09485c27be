#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "protocol/base/score_options.h"

namespace dkv {

/// How much the window's queries attend to each prefix token (DynamicKV §3.2; SnapKV eq. 5).
///
///   queries  [q_heads, window, head_dim]    the last `window` prompt tokens, after RoPE; read
///   keys     [kv_heads, tokens, head_dim]   the same dtype; read, once per group of query heads
///   scores   [rows, tokens - window]        f32, written; rows = q_heads with None, else kv_heads
///   mass     [kv_heads, tokens - window]    f32, written; or empty
///   peaks    [kv_heads, tokens - window]    f32, written; or empty
///
/// p = softmax over all `tokens` of scale * q·k (softcap * tanh(· / softcap) when softcap > 0),
/// where the query of token t sees the tokens up to t: the last `window` columns are causal.
/// a[query head] = mean of p over the window's queries; scores = a reduced over the group;
/// mass = mean of p over the window's queries and the group, so that the shares of the prefix, the
/// window and the sinks add up to 1 per KV head; peaks = the largest p of any of them. f32
/// accumulators or wider; of [q_heads, window, tokens] a backend stores a bounded part at most, and
/// expanded keys never. A logit that is NaN counts as the smallest finite number and an infinite
/// one as the nearest finite one, so scores and mass are always finite.
///
/// With sinks each query's softmax is over its tokens' logits, after scale and softcap, and its
/// head's sink. That gets no score.
struct ScoreArgs {
    RowsView queries;
    RowsView keys;
    std::span<float> scores;
    std::span<float> mass;
    std::span<float> peaks = {};
    GroupReduce reduce = GroupReduce::Mean;
    float scale = 0;    ///< 0: 1/sqrt(head_dim).
    float softcap = 0;  ///< 0: none.
    /// [q_heads] learned attention sinks, in the host's memory; empty: none.
    std::span<float const> sink_logits = {};
};

/// Errors: InvalidArgument when shapes, dtypes or sizes disagree with the table above, when window
/// is 0 or exceeds tokens, when q_heads is not a multiple of kv_heads, when scale, softcap or a
/// sink is not finite, or softcap is negative.
Result<void> check(ScoreArgs const& args);

}  // namespace dkv
