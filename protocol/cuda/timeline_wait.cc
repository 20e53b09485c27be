#include "protocol/cuda/cuda_try.h"
#include "protocol/cuda/events.h"
#include "protocol/cuda/host_poll.h"

namespace dkv::cuda {
namespace {

/// A stream of its own: the word is read while everything else on the device goes on.
class Reader {
public:
    Reader() = default;
    Reader(Reader const&) = delete;
    Reader& operator=(Reader const&) = delete;
    ~Reader() {
        if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    }
    Result<void> open() {
        int lowest = 0;
        int highest = 0;
        DKV_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
        DKV_CUDA_TRY(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest));
        return {};
    }
    Result<std::uint64_t> read(void const* word) const {
        std::uint64_t value = 0;
        DKV_CUDA_TRY(cudaMemcpyAsync(&value, word, sizeof value, cudaMemcpyDeviceToHost, stream_));
        DKV_CUDA_TRY(cudaStreamSynchronize(stream_));
        return value;
    }

private:
    cudaStream_t stream_ = nullptr;
};

}  // namespace

Result<void> wait_timeline(void const* word,
                           std::uint64_t value,
                           std::chrono::milliseconds deadline,
                           bool (*cancelled)(void*),
                           void* context) {
    if (word == nullptr || reinterpret_cast<std::uintptr_t>(word) % sizeof value != 0)
        return Error{ErrorCode::InvalidArgument, "a timeline's word is not aligned to 8 bytes"};
    Reader reader;
    DKV_TRY(reader.open());
    return poll_on_host("timeline value " + std::to_string(value), deadline, cancelled, context,
                        [&]() -> Result<bool> { return DKV_TRY(reader.read(word)) >= value; });
}

}  // namespace dkv::cuda
