#include "kernels/ops/pool.h"

#include <functional>
#include <string>

#include "kernels/tensor_view.h"

namespace dkv {

Result<void> check(PoolArgs const& args) {
    if (args.kernel % 2 == 0)
        return Error{ErrorCode::InvalidArgument,
                     "kernel is " + std::to_string(args.kernel) + ", not odd"};
    DKV_TRY(check_elements("scores", args.scores.size(), {args.heads, args.tokens}));
    DKV_TRY(check_elements("out", args.out.size(), {args.heads, args.tokens}));

    std::less<float const*> const before;  // Unlike <, defined for pointers into unrelated arrays.
    float const* const scores_end = args.scores.data() + args.scores.size();
    float const* const out_end = args.out.data() + args.out.size();
    if (before(args.scores.data(), out_end) && before(args.out.data(), scores_end))
        return Error{ErrorCode::InvalidArgument, "out overlaps scores"};
    return {};
}

}  // namespace dkv
