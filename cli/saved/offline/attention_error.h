// What a layer's attention loses when only some of its tokens are kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"

namespace dkv::offline {

/// Some of a layer's tokens.
struct KeptTokens {
    std::vector<std::int32_t> rows;      ///< [Σ lengths] head after head, ascending.
    std::vector<std::uint32_t> lengths;  ///< [kv_heads]
};

/// The relative L2 error ‖o' - o‖ / ‖o‖ of the attention's output, over all queries and query
/// heads, for each choice of tokens.
///
///   queries  [q_heads, rows, head_dim]       the last tokens', after RoPE; read
///   keys     [kv_heads, tokens, head_dim]    the same dtype; read once
///   values   [kv_heads, tokens, head_dim]    likewise; read once, and where tokens are kept
///
/// o = softmax(scale * q·k) v (softcap * tanh(· / softcap) when softcap > 0) over the tokens that
/// the query sees, those up to its own, and its head's sink, which has no value; o' the same over
/// those of them that are kept, and 0 where there are none. f32 accumulators or wider; of logits
/// one KV head's at a time per thread. The bits do not depend on the number of threads.
struct AttentionErrorArgs {
    RowsView queries;
    RowsView keys;
    RowsView values;
    std::span<KeptTokens const> kept;
    float scale = 0;                          ///< 0: 1/sqrt(head_dim).
    float softcap = 0;                        ///< 0: none.
    std::span<float const> sink_logits = {};  ///< [q_heads]; empty: none.
};

/// [kept]. `threads` 0: every core.
///
/// Errors: InvalidArgument when a shape or dtype disagrees with the table above, or there are more
/// queries than tokens.
Result<std::vector<double>> attention_error(AttentionErrorArgs const& args, unsigned threads = 0);

}  // namespace dkv::offline
