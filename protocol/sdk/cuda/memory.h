// Device memory as libdkv takes it: an allocation of ours, or one that the host has already.
#pragma once

#include <cstdint>

#include "protocol/base/result.h"
#include "protocol/device/device.h"
#include "protocol/sdk/device_abi.h"
#include "protocol/sdk/dkv_cuda.h"

namespace dkv::sdk_cuda {

/// Errors: InvalidArgument for 0 bytes or the kind; LimitExceeded; Device.
Result<dkv_device_memory> allocate(cuda::Device const& device,
                                   std::uint64_t bytes,
                                   dkv_cuda_arena_kind kind);

/// Errors: those of cuda::export_memory(), now and not at the first use.
Result<dkv_device_memory> adopt(void* data, std::uint64_t bytes);

}  // namespace dkv::sdk_cuda
