#include "kernels/ops/accumulate.h"

#include <cmath>
#include <string>

#include "protocol/base/sink_logits.h"

namespace dkv {

Result<void> check(AccumulateArgs const& args) {
    auto const& queries = args.queries;
    auto const& keys = args.keys;
    auto const invalid = [](std::string message) {
        return Error{ErrorCode::InvalidArgument, std::move(message)};
    };
    DKV_TRY(check_heads(queries, keys));
    if (keys.tokens == 0) return invalid("tokens is 0");
    if (args.window > keys.tokens)
        return invalid("window is " + std::to_string(args.window) + ", more than the " +
                       std::to_string(keys.tokens) + " tokens of keys");
    DKV_TRY(check_shape("queries", queries, queries.heads, keys.tokens, keys.head_dim));
    bool const per_query_head = args.reduce == GroupReduce::None;
    DKV_TRY(check_elements(
        "scores", args.scores.size(),
        {per_query_head ? queries.heads : keys.heads, std::uint64_t{keys.tokens} - args.window}));
    if (!std::isfinite(args.scale)) return invalid("scale is " + std::to_string(args.scale));
    if (!std::isfinite(args.softcap) || args.softcap < 0)
        return invalid("softcap is " + std::to_string(args.softcap));
    DKV_TRY(check_sink_logits(args.sink_logits, queries.heads));
    DKV_TRY(check_memory("queries", queries));
    return check_memory("keys", keys);
}

}  // namespace dkv
