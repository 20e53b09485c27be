#include "protocol/device/memory.h"

#include "protocol/device/none/without_cuda.h"

namespace dkv::cuda {

Result<Exported> export_memory(void const* /*data*/, std::uint64_t /*bytes*/) {
    return without_cuda();
}
Result<std::unique_ptr<DeviceMemory>> allocate_device_memory(std::uint64_t /*bytes*/) {
    return without_cuda();
}
Result<std::unique_ptr<DeviceMemory>> allocate_vmm_memory(std::uint64_t /*bytes*/) {
    return without_cuda();
}
Result<std::shared_ptr<OpenedMemory const>> open_memory(Exported const& /*memory*/,
                                                        std::uint64_t /*instance*/,
                                                        std::uint32_t /*generation*/) {
    return without_cuda();
}
std::size_t opened_memory_count() noexcept {
    return 0;
}

}  // namespace dkv::cuda
