#include "protocol/device/device.h"

#include "protocol/device/none/without_cuda.h"

namespace dkv::cuda {

std::string_view built_with() noexcept {
    return "no CUDA";
}
Result<std::vector<Device>> devices() {
    return without_cuda();
}
Result<Device> find_device(std::string_view /*uuid*/) {
    return without_cuda();
}
Result<void> use_device(std::string_view /*uuid*/) {
    return without_cuda();
}
Result<void> check_alive(std::string_view /*uuid*/) {
    return without_cuda();
}

}  // namespace dkv::cuda
