#include "protocol/device/sharing.h"

#include "protocol/device/cuda_try.h"

namespace dkv::cuda {

Result<Sharing> sharing_of(Device const& device) {
    cudaDeviceProp properties{};
    DKV_CUDA_TRY(cudaGetDeviceProperties(&properties, device.ordinal));
    auto const kinds = static_cast<unsigned>(properties.memoryPoolSupportedHandleTypes);
    // Pools are made of the driver's virtual memory: what they can export, that can, too.
    // CUDA asks the same attribute for memory's handles as for events'.
    bool const ipc = properties.unifiedAddressing != 0 && properties.ipcEventSupported != 0;
    return Sharing{.handles = ipc,
                   .descriptors = (kinds & cudaMemHandleTypePosixFileDescriptor) != 0,
                   .events = ipc};
}

}  // namespace dkv::cuda
