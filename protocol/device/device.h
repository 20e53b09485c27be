// The GPUs this process can use. No CUDA header is included here: who asks needs no toolkit.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/base/result.h"

namespace dkv::cuda {

struct Device {
    int ordinal = 0;   ///< Of this process alone: CUDA_VISIBLE_DEVICES changes it.
    std::string uuid;  ///< "GPU-01234567-89ab-cdef-0123-456789abcdef": what the wire carries.
    std::string name;
    int major = 0;  ///< Compute capability.
    int minor = 0;
    std::uint64_t bytes = 0;
    std::uint32_t multiprocessors = 0;
};

/// What this program was built with: "CUDA 13.0", "CUDA 13.0, emulated on the CPU", or "no CUDA".
std::string_view built_with() noexcept;

/// Every device that this process can see, at least one.
///
/// Errors: Unavailable without a driver or device (CUDA's codes 34, 35 and 100), the code
/// and its meaning in the message; Unsupported when this was built without CUDA.
Result<std::vector<Device>> devices();

/// Errors: those of devices(); NotFound, naming the devices there are.
Result<Device> find_device(std::string_view uuid);

/// Makes the device the calling thread's, with a current context: driver calls need one.
///
/// Errors: those of find_device(); Device.
Result<void> use_device(std::string_view uuid);

/// Whether the device still does anything. After a failed kernel every call fails, closing
/// mappings included, for the rest of the process. Makes it the calling thread's.
///
/// Errors: Device; those of find_device().
Result<void> check_alive(std::string_view uuid);

}  // namespace dkv::cuda
