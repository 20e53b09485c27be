// The calling thread's device for a while: a host has its own, and finds it again afterwards. It
// may also be capturing a graph meanwhile, on this thread or another, and that goes on, too.
#pragma once

#include <utility>

#include "protocol/base/result.h"

namespace dkv::cuda {

class DeviceGuard {
public:
    /// With the device's primary context current, which driver calls need. Errors: Device.
    static Result<DeviceGuard> enter(int ordinal);
    DeviceGuard(DeviceGuard&& other) noexcept
        : context_(other.context_),
          capture_mode_(other.capture_mode_),
          active_(std::exchange(other.active_, false)) {}
    DeviceGuard& operator=(DeviceGuard&&) = delete;
    ~DeviceGuard();

private:
    explicit DeviceGuard(void* context) noexcept : context_(context) {}
    /// Not the device that was current: setting that one makes a context of it, and a context that
    /// the host made itself would not come back.
    void* context_;
    int capture_mode_ = 0;
    bool active_ = true;
};

}  // namespace dkv::cuda
