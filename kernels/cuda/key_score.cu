#include "kernels/cuda/ops.h"

namespace dkv::cuda {

Result<void> key_score(KeyScoreArgs const& args, Queue& /*queue*/) {
    DKV_TRY(check(args));
    return Error{ErrorCode::Unsupported, "key_score is not there on a GPU yet"};
}

}  // namespace dkv::cuda
