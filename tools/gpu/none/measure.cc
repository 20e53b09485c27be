#include "tools/gpu/measure.h"

#include "protocol/device/device.h"

namespace dkv::gpu {

Result<Peaks> peaks() {
    return cuda::devices().error();
}

Result<double> copy_rate(Options const& /*options*/) {
    return cuda::devices().error();
}

Result<void> measure(Options const& /*options*/,
                     std::function<void(Measured const&)> const& /*each*/) {
    return cuda::devices().error();
}

}  // namespace dkv::gpu
