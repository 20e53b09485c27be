#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "protocol/base/score_options.h"

namespace dkv {

/// How much all of a prompt's queries attend to each token (H2O, Zhang et al. 2023, §3).
///
///   queries  [q_heads, tokens, head_dim]   every prompt token, after RoPE; read
///   keys     [kv_heads, tokens, head_dim]  the same dtype; read
///   scores   [rows, tokens - window]       f32, written; rows = q_heads with None, else kv_heads
///
/// p = softmax of scale * q·k (softcap * tanh(· / softcap) when softcap > 0) over the tokens that
/// the query sees, those up to its own, and over its head's sink, which gets no score. a[query
/// head, token] = Σ p over all queries, divided by the tokens - token of them that see the token
/// when `per_query`; scores = a reduced over the group. The last `window` tokens have no column.
/// Tile by tile: nothing of [tokens, tokens] is ever stored, of the queries only the statistics
/// are. f32 accumulators or wider. A logit that is NaN counts as the smallest finite number and an
/// infinite one as the nearest finite one, so scores are always finite.
struct AccumulateArgs {
    RowsView queries;
    RowsView keys;
    std::span<float> scores;
    std::uint32_t window = 0;
    GroupReduce reduce = GroupReduce::Mean;
    bool per_query = false;
    float scale = 0;    ///< 0: 1/sqrt(head_dim).
    float softcap = 0;  ///< 0: none.
    /// [q_heads] learned attention sinks, in the host's memory; empty: none.
    std::span<float const> sink_logits = {};
};

/// Errors: InvalidArgument when shapes, dtypes or sizes disagree with the table above, with 0
/// tokens or a window that exceeds them, when q_heads is not a multiple of kv_heads, when scale,
/// softcap or a sink is not finite, or softcap is negative.
Result<void> check(AccumulateArgs const& args);

}  // namespace dkv
