#include "protocol/cuda/copy.h"
#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {
namespace {

class Stream {
public:
    Stream() = default;
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    ~Stream() {
        if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    }
    Result<void> open() {
        // The default stream would wait for all of the host's work.
        DKV_CUDA_TRY(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        return {};
    }
    cudaStream_t get() const noexcept { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

}  // namespace

Result<void> copy_to_host(void* target, void const* source, std::uint64_t bytes) {
    Stream stream;
    DKV_TRY(stream.open());
    DKV_CUDA_TRY(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream.get()));
    DKV_CUDA_TRY(cudaStreamSynchronize(stream.get()));
    return {};
}

Result<void> copy_to_device(void* target, void const* source, std::uint64_t bytes, void* stream) {
    auto const queue = static_cast<cudaStream_t>(stream);
    DKV_CUDA_TRY(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, queue));
    DKV_CUDA_TRY(cudaStreamSynchronize(queue));
    return {};
}

}  // namespace dkv::cuda
