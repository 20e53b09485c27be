#include "kernels/ops/score.h"

#include <cmath>
#include <string>

namespace dkv {
namespace {

// Strides of 0 can make a small buffer look like anything; what backends allocate for the queries
// and their statistics must still be a number.
constexpr std::uint64_t kQueryElementsMax = std::uint64_t{1} << 36;

Result<void> check_heads(RowsView const& queries, RowsView const& keys) {
    auto const invalid = [](std::string message) {
        return Error{ErrorCode::InvalidArgument, std::move(message)};
    };
    if (keys.heads == 0 || queries.heads == 0 || queries.heads % keys.heads != 0)
        return invalid("q_heads is " + std::to_string(queries.heads) +
                       ", no multiple of kv_heads " + std::to_string(keys.heads));
    if (keys.head_dim == 0) return invalid("head_dim is 0");
    if (queries.tokens == 0) return invalid("window is 0");
    if (queries.tokens > keys.tokens)
        return invalid("window is " + std::to_string(queries.tokens) + ", more than the " +
                       std::to_string(keys.tokens) + " tokens of keys");
    if (queries.dtype != keys.dtype)
        return invalid("queries are " + std::string(name_of(queries.dtype)) + ", keys " +
                       std::string(name_of(keys.dtype)));
    std::uint64_t elements = std::uint64_t{queries.heads} * queries.tokens;
    if (__builtin_mul_overflow(elements, std::uint64_t{queries.head_dim}, &elements) ||
        elements > kQueryElementsMax)
        return invalid("queries have more than " + std::to_string(kQueryElementsMax) + " elements");
    return {};
}

}  // namespace

Result<void> check(ScoreArgs const& args) {
    auto const& queries = args.queries;
    auto const& keys = args.keys;
    DKV_TRY(check_heads(queries, keys));
    DKV_TRY(check_shape("queries", queries, queries.heads, queries.tokens, keys.head_dim));

    std::uint64_t const prefix = keys.tokens - queries.tokens;
    bool const per_query_head = args.reduce == GroupReduce::None;
    DKV_TRY(check_elements("scores", args.scores.size(),
                           {per_query_head ? queries.heads : keys.heads, prefix}));
    if (!args.mass.empty()) DKV_TRY(check_elements("mass", args.mass.size(), {keys.heads, prefix}));
    if (!args.lse.empty())
        DKV_TRY(check_elements("lse", args.lse.size(), {queries.heads, queries.tokens}));

    if (!std::isfinite(args.scale))
        return Error{ErrorCode::InvalidArgument, "scale is " + std::to_string(args.scale)};
    if (!std::isfinite(args.softcap) || args.softcap < 0)
        return Error{ErrorCode::InvalidArgument, "softcap is " + std::to_string(args.softcap)};
    DKV_TRY(check_memory("queries", queries));
    DKV_TRY(check_memory("keys", keys));
    return {};
}

}  // namespace dkv
