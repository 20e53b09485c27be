// Memory as engines take it that use cudaMallocAsync. No CUDA header is included here.
#pragma once

#include "protocol/device/memory.h"

namespace dkv::gpu {

/// From a pool of its own that can be exported: cuda::PoolMemory. Not zeroed.
///
/// Errors: Unavailable when the device's pools cannot be exported; Device.
Result<std::unique_ptr<cuda::DeviceMemory>> allocate_pool_memory(std::uint64_t bytes);

}  // namespace dkv::gpu
