#include "kernels/ops/select.h"

#include <limits>
#include <string>

#include "kernels/tensor_view.h"

namespace dkv {
namespace {

constexpr std::uint32_t kTokensMax = std::numeric_limits<std::int32_t>::max();  // Ids are i32.

}  // namespace

Result<void> check(SelectArgs const& args) {
    if (args.tokens > kTokensMax)
        return Error{ErrorCode::InvalidArgument, "tokens is " + std::to_string(args.tokens) +
                                                     ", more than " + std::to_string(kTokensMax)};
    DKV_TRY(check_elements("scores", args.scores.size(), {args.keep.size(), args.tokens}));
    std::uint64_t total = 0;
    for (std::size_t head = 0; head < args.keep.size(); ++head) {
        if (args.keep[head] > args.tokens)
            return Error{ErrorCode::InvalidArgument, "keep[" + std::to_string(head) + "] is " +
                                                         std::to_string(args.keep[head]) +
                                                         ", more than the " +
                                                         std::to_string(args.tokens) + " tokens"};
        total += args.keep[head];
    }
    return check_elements("ids", args.ids.size(), {total});
}

}  // namespace dkv
