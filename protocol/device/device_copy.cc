#include "protocol/device/copy.h"
#include "protocol/device/cuda_try.h"
#include "protocol/device/own_stream.h"

namespace dkv::cuda {

Result<void> copy_to_host(void* target, void const* source, std::uint64_t bytes) {
    auto const stream = DKV_TRY(OwnStream::create());
    return stream.copy_to_host(target, source, bytes);
}

Result<void> copy_to_device(void* target, void const* source, std::uint64_t bytes, void* stream) {
    auto const queue = static_cast<cudaStream_t>(stream);
    DKV_CUDA_TRY(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, queue));
    DKV_CUDA_TRY(cudaStreamSynchronize(queue));
    return {};
}

}  // namespace dkv::cuda
