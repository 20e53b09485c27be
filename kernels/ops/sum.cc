#include "kernels/ops/sum.h"

#include "kernels/tensor_view.h"

namespace dkv {

Result<void> check(SumArgs const& args) {
    DKV_TRY(check_elements("scores", args.scores.size(), {args.heads, args.tokens}));
    return check_elements("sums", args.sums.size(), {args.heads});
}

}  // namespace dkv
