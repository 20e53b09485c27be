// The calling thread's device for a while: a host has its own, and finds it again afterwards.
#pragma once

#include <utility>

#include "protocol/base/result.h"

namespace dkv::cuda {

class DeviceGuard {
public:
    /// With a current context, which driver calls need. Errors: Device.
    static Result<DeviceGuard> enter(int ordinal);
    DeviceGuard(DeviceGuard&& other) noexcept : before_(std::exchange(other.before_, kNone)) {}
    DeviceGuard& operator=(DeviceGuard&&) = delete;
    ~DeviceGuard();

private:
    static constexpr int kNone = -1;
    explicit DeviceGuard(int before) noexcept : before_(before) {}
    int before_;
};

}  // namespace dkv::cuda
