#include "protocol/device/sharing.h"

#include "protocol/device/none/without_cuda.h"

namespace dkv::cuda {

Result<Sharing> sharing_of(Device const& /*device*/) {
    return without_cuda();
}

}  // namespace dkv::cuda
