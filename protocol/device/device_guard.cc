#include "protocol/device/device_guard.h"

#include "protocol/device/cuda_try.h"
#include "protocol/device/driver.h"

namespace dkv::cuda {
namespace {

/// What no call of ours is kept from by a capture of the host's, nor spoils it by.
int exchange_capture_mode(int mode) {
    auto wish = static_cast<cudaStreamCaptureMode>(mode);
    if (cudaThreadExchangeStreamCaptureMode(&wish) != cudaSuccess)
        static_cast<void>(cudaGetLastError());
    return static_cast<int>(wish);
}

}  // namespace

Result<DeviceGuard> DeviceGuard::enter(int ordinal) {
    auto const current =
        DKV_TRY(driver_function<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent", 4000));
    CUcontext context = nullptr;
    // Before the driver's first use there is none.
    if (CUresult const status = current(&context); status != CUDA_ERROR_NOT_INITIALIZED)
        DKV_DRIVER_TRY(status);
    DKV_CUDA_TRY(cudaSetDevice(ordinal));  // With its primary context, since CUDA 12.
    DeviceGuard guard(context);
    guard.capture_mode_ = exchange_capture_mode(cudaStreamCaptureModeRelaxed);
    return guard;
}

DeviceGuard::~DeviceGuard() {
    if (!active_) return;
    exchange_capture_mode(capture_mode_);
    auto const restore = driver_function<PFN_cuCtxSetCurrent_v4000>("cuCtxSetCurrent", 4000);
    if (restore) static_cast<void>(restore.value()(static_cast<CUcontext>(context_)));
}

}  // namespace dkv::cuda
