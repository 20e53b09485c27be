// The calling thread's device for a while: a host has its own, and finds it again afterwards. For
// files that include CUDA's headers only.
#pragma once

#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {

class DeviceGuard {
public:
    /// With a current context, which driver calls need. Errors: Device.
    static Result<DeviceGuard> enter(int ordinal) {
        int before = 0;
        DKV_CUDA_TRY(cudaGetDevice(&before));
        DKV_CUDA_TRY(cudaSetDevice(ordinal));
        DeviceGuard guard(before);
        DKV_CUDA_TRY(cudaFree(nullptr));
        return guard;
    }
    DeviceGuard(DeviceGuard&& other) noexcept : before_(std::exchange(other.before_, kNone)) {}
    DeviceGuard& operator=(DeviceGuard&&) = delete;
    ~DeviceGuard() {
        if (before_ != kNone) static_cast<void>(cudaSetDevice(before_));
    }

private:
    static constexpr int kNone = -1;
    explicit DeviceGuard(int before) noexcept : before_(before) {}
    int before_;
};

}  // namespace dkv::cuda
