#pragma once

#include "protocol/base/error.h"

namespace dkv::cuda {

inline Error without_cuda() {
    return {ErrorCode::Unsupported, "this was built without CUDA"};
}

}  // namespace dkv::cuda
