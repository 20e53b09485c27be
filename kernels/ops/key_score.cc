#include "kernels/ops/key_score.h"

#include <string>

namespace dkv {

Result<void> check(KeyScoreArgs const& args) {
    auto const& keys = args.keys;
    if (keys.heads == 0 || keys.head_dim == 0)
        return Error{ErrorCode::InvalidArgument, "keys has " + std::to_string(keys.heads) +
                                                     " heads of " + std::to_string(keys.head_dim) +
                                                     " dimensions"};
    if (args.window > keys.tokens)
        return Error{ErrorCode::InvalidArgument,
                     "window is " + std::to_string(args.window) + ", more than the " +
                         std::to_string(keys.tokens) + " tokens of keys"};
    DKV_TRY(check_elements("scores", args.scores.size(),
                           {keys.heads, std::uint64_t{keys.tokens} - args.window}));
    return check_memory("keys", keys);
}

}  // namespace dkv
