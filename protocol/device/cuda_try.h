// Turns a failed CUDA runtime call into an Error. For files that include CUDA's headers only.
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include "protocol/base/result.h"

namespace dkv::cuda {

inline Error device_error(cudaError_t status, char const* call) {
    return {ErrorCode::Device, std::string(call) + ": " + cudaGetErrorName(status) + ", " +
                                   cudaGetErrorString(status)};
}

}  // namespace dkv::cuda

/// Returns a Device error from the enclosing function unless `call` is cudaSuccess. Clears the
/// runtime's last error, so that the next launch check does not report this one again.
#define DKV_CUDA_TRY(call)                                                        \
    do {                                                                          \
        if (cudaError_t const dkv_status_ = (call); dkv_status_ != cudaSuccess) { \
            static_cast<void>(cudaGetLastError());                                \
            return ::dkv::cuda::device_error(dkv_status_, #call);                 \
        }                                                                         \
    } while (false)
