// A stream that waits for none of the host's. The default stream would wait for all of them, and a
// capture that is under way forbids it. For files that include CUDA's headers only.
#pragma once

#include <utility>

#include "protocol/device/cuda_try.h"

namespace dkv::cuda {

class OwnStream {
public:
    /// Of the thread's device. Errors: Device.
    static Result<OwnStream> create() {
        int least = 0;
        int greatest = 0;
        DKV_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest));
        OwnStream made;
        DKV_CUDA_TRY(cudaStreamCreateWithPriority(&made.stream_, cudaStreamNonBlocking, greatest));
        return made;
    }
    OwnStream(OwnStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
    OwnStream& operator=(OwnStream&&) = delete;
    ~OwnStream() {
        if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    }

    cudaStream_t get() const noexcept { return stream_; }
    Result<void> synchronize() const {
        DKV_CUDA_TRY(cudaStreamSynchronize(stream_));
        return {};
    }
    Result<void> copy_to_host(void* target, void const* source, std::size_t bytes) const {
        DKV_CUDA_TRY(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream_));
        return synchronize();
    }
    Result<void> clear(void* target, std::size_t bytes) const {
        DKV_CUDA_TRY(cudaMemsetAsync(target, 0, bytes, stream_));
        return synchronize();
    }

private:
    OwnStream() = default;
    cudaStream_t stream_ = nullptr;
};

}  // namespace dkv::cuda
