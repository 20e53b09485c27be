// Bytes between the host's memory and a device's. No CUDA header is included here.
#pragma once

#include <cstdint>

#include "protocol/base/result.h"

namespace dkv::cuda {

/// The ordinal of the device whose memory `data` is. Errors: InvalidArgument when it is none's;
/// Unsupported, by name, for pinned and managed memory; Device.
Result<int> device_of(void const* data, std::uint64_t bytes);

/// Waits for the copy and for nothing else: on a stream of its own. Errors: Device.
Result<void> copy_to_host(void* target, void const* source, std::uint64_t bytes);

/// Behind what is queued on `stream` (a cudaStream_t; nullptr: the default stream); `source` can be
/// used again when this returns. Errors: Device.
Result<void> copy_to_device(void* target, void const* source, std::uint64_t bytes, void* stream);

}  // namespace dkv::cuda
