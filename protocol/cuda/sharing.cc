#include "protocol/cuda/sharing.h"

#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {

Result<Sharing> sharing_of(Device const& device) {
    cudaDeviceProp properties{};
    DKV_CUDA_TRY(cudaGetDeviceProperties(&properties, device.ordinal));
    auto const kinds = static_cast<unsigned>(properties.memoryPoolSupportedHandleTypes);
    // Pools are made of the driver's virtual memory: what they can export, that can, too.
    return Sharing{.handles = properties.unifiedAddressing != 0,
                   .descriptors = (kinds & cudaMemHandleTypePosixFileDescriptor) != 0,
                   .events = properties.ipcEventSupported != 0};
}

}  // namespace dkv::cuda
