#include "protocol/cuda/device_guard.h"

#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {

Result<DeviceGuard> DeviceGuard::enter(int ordinal) {
    int before = 0;
    DKV_CUDA_TRY(cudaGetDevice(&before));
    DKV_CUDA_TRY(cudaSetDevice(ordinal));
    DeviceGuard guard(before);
    DKV_CUDA_TRY(cudaFree(nullptr));
    return guard;
}

DeviceGuard::~DeviceGuard() {
    if (before_ != kNone) static_cast<void>(cudaSetDevice(before_));
}

}  // namespace dkv::cuda
