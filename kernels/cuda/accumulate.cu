#include "kernels/cuda/ops.h"

namespace dkv::cuda {

Result<void> accumulate(AccumulateArgs const& args, Queue& /*queue*/) {
    DKV_TRY(check(args));
    return Error{ErrorCode::Unsupported, "accumulate is not there on a GPU yet"};
}

}  // namespace dkv::cuda
