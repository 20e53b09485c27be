#include "kernels/ops/score.h"

#include <cmath>
#include <string>

#include "protocol/base/sink_logits.h"

namespace dkv {
Result<void> check(ScoreArgs const& args) {
    auto const& queries = args.queries;
    auto const& keys = args.keys;
    DKV_TRY(check_heads(queries, keys));
    if (queries.tokens == 0) return Error{ErrorCode::InvalidArgument, "window is 0"};
    if (queries.tokens > keys.tokens)
        return Error{ErrorCode::InvalidArgument,
                     "window is " + std::to_string(queries.tokens) + ", more than the " +
                         std::to_string(keys.tokens) + " tokens of keys"};
    DKV_TRY(check_shape("queries", queries, queries.heads, queries.tokens, keys.head_dim));

    std::uint64_t const prefix = keys.tokens - queries.tokens;
    bool const per_query_head = args.reduce == GroupReduce::None;
    DKV_TRY(check_elements("scores", args.scores.size(),
                           {per_query_head ? queries.heads : keys.heads, prefix}));
    if (!args.mass.empty()) DKV_TRY(check_elements("mass", args.mass.size(), {keys.heads, prefix}));
    if (!args.peaks.empty())
        DKV_TRY(check_elements("peaks", args.peaks.size(), {keys.heads, prefix}));

    if (!std::isfinite(args.scale))
        return Error{ErrorCode::InvalidArgument, "scale is " + std::to_string(args.scale)};
    if (!std::isfinite(args.softcap) || args.softcap < 0)
        return Error{ErrorCode::InvalidArgument, "softcap is " + std::to_string(args.softcap)};
    DKV_TRY(check_sink_logits(args.sink_logits, queries.heads));
    DKV_TRY(check_memory("queries", queries));
    DKV_TRY(check_memory("keys", keys));
    return {};
}

}  // namespace dkv
