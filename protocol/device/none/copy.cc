#include "protocol/device/copy.h"

#include "protocol/device/none/without_cuda.h"

namespace dkv::cuda {

Result<int> device_of(void const* /*data*/, std::uint64_t /*bytes*/) {
    return without_cuda();
}
Result<void> copy_to_host(void* /*target*/, void const* /*source*/, std::uint64_t /*bytes*/) {
    return without_cuda();
}
Result<void> copy_to_device(void* /*target*/,
                            void const* /*source*/,
                            std::uint64_t /*bytes*/,
                            void* /*stream*/) {
    return without_cuda();
}

}  // namespace dkv::cuda
