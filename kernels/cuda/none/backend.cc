#include "kernels/backend.h"

namespace dkv {

Result<std::unique_ptr<Backend>> make_cuda_backend(CudaOptions const& /*options*/) {
    return Error{ErrorCode::Unsupported, "this was built without CUDA"};
}

}  // namespace dkv
