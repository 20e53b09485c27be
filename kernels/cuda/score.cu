#include "kernels/cuda/ops.h"

namespace dkv::cuda {

Result<void> score(ScoreArgs const& args, Queue& /*queue*/) {
    DKV_TRY(check(args));
    return Error{ErrorCode::Unsupported, "score is not there on a GPU yet"};
}

}  // namespace dkv::cuda
