#include "protocol/cuda/sharing.h"

#include "protocol/cuda/none/without_cuda.h"

namespace dkv::cuda {

Result<Sharing> sharing_of(Device const& /*device*/) {
    return without_cuda();
}

}  // namespace dkv::cuda
