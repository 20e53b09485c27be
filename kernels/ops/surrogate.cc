#include "kernels/ops/surrogate.h"

#include <cmath>
#include <string>

namespace dkv {

std::vector<float> turns(std::span<float const> frequencies, std::uint32_t tokens) {
    std::vector<float> table;
    auto const add = [&](std::uint64_t position) {
        for (float const frequency : frequencies)
            table.push_back(
                static_cast<float>(std::cos(static_cast<double>(position) * double{frequency})));
        for (float const frequency : frequencies)
            table.push_back(
                static_cast<float>(std::sin(static_cast<double>(position) * double{frequency})));
    };
    for (std::uint64_t position = 0; position < kTurnBlock; ++position)
        add(position);
    for (std::uint64_t position = 0; position < tokens; position += kTurnBlock)
        add(position);
    return table;
}

Result<void> check(SurrogateArgs const& args) {
    RowsView const& keys = args.keys;
    if (keys.heads == 0 || keys.head_dim == 0)
        return Error{ErrorCode::InvalidArgument, "keys has " + std::to_string(keys.heads) +
                                                     " heads of " + std::to_string(keys.head_dim) +
                                                     " dimensions"};
    DKV_TRY(check_shape("values", args.values, keys.heads, keys.tokens, keys.head_dim));
    if (args.values.dtype != keys.dtype || args.values.place != keys.place)
        return Error{ErrorCode::InvalidArgument,
                     "values are of another dtype, or in another memory, than keys"};
    if (args.window > keys.tokens)
        return Error{ErrorCode::InvalidArgument,
                     "window is " + std::to_string(args.window) + ", more than the " +
                         std::to_string(keys.tokens) + " tokens of keys"};
    if (args.pairs > keys.head_dim / 2)
        return Error{ErrorCode::InvalidArgument,
                     "pairs is " + std::to_string(args.pairs) + ", more than half of the " +
                         std::to_string(keys.head_dim) + " dimensions of keys"};
    DKV_TRY(check_elements("weights", args.weights.size(),
                           {keys.heads, surrogate_features(keys.heads, keys.head_dim)}));
    std::uint64_t const blocks = (std::uint64_t{keys.tokens} + kTurnBlock - 1) / kTurnBlock;
    DKV_TRY(check_elements("turns", args.turns.size(), {kTurnBlock + blocks, 2, args.pairs}));
    if (!args.attention.empty())
        DKV_TRY(check_elements("attention", args.attention.size(),
                               {keys.heads, std::uint64_t{keys.tokens} - args.window}));
    DKV_TRY(check_elements("scores", args.scores.size(),
                           {keys.heads, std::uint64_t{keys.tokens} - args.window}));
    DKV_TRY(check_memory("keys", keys));
    return check_memory("values", args.values);
}

}  // namespace dkv
