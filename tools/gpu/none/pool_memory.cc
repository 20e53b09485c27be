#include "tools/gpu/pool_memory.h"

#include "protocol/device/device.h"

namespace dkv::gpu {

Result<std::unique_ptr<cuda::DeviceMemory>> allocate_pool_memory(std::uint64_t /*bytes*/) {
    return cuda::devices().error();
}

}  // namespace dkv::gpu
