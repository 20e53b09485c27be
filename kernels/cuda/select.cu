#include "kernels/cuda/ops.h"

namespace dkv::cuda {

Result<void> select(SelectArgs const& args, Queue& /*queue*/) {
    DKV_TRY(check(args));
    return Error{ErrorCode::Unsupported, "select is not there on a GPU yet"};
}

}  // namespace dkv::cuda
