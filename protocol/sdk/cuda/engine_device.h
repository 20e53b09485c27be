// What an engine on a GPU has of it: memory for its sessions and a pool of events.
#pragma once

#include <cstdint>
#include <string_view>

#include "protocol/base/result.h"
#include "protocol/sdk/device_abi.h"

namespace dkv::sdk_cuda {

/// Errors: of cuda::find_device().
Result<dkv_device> device_functions(std::string_view uuid, std::uint32_t layers);

}  // namespace dkv::sdk_cuda
