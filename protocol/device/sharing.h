// What a device lets processes share. No CUDA header is included here.
#pragma once

#include "protocol/device/device.h"

namespace dkv::cuda {

struct Sharing {
    bool handles = false;      ///< cudaMalloc'ed memory, by legacy IPC handle.
    bool descriptors = false;  ///< cuMemCreate's memory and memory pools, by POSIX descriptor.
    bool events = false;       ///< Interprocess events; timelines do without.
};

/// Errors: those of devices(); Device.
Result<Sharing> sharing_of(Device const& device);

}  // namespace dkv::cuda
