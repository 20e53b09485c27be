// A stretch of a stream, timed by events. For files that include CUDA's headers.
#pragma once

#include <memory>

#include "kernels/cuda/queue.h"
#include "protocol/cuda/cuda_try.h"

namespace dkv::gpu {

class Stopwatch {
public:
    static Result<Stopwatch> create() {
        Stopwatch stopwatch;
        DKV_CUDA_TRY(cudaEventCreate(&stopwatch.begin_));
        DKV_CUDA_TRY(cudaEventCreate(&stopwatch.end_));
        return stopwatch;
    }
    Stopwatch(Stopwatch&& other) noexcept
        : begin_(std::exchange(other.begin_, nullptr)), end_(std::exchange(other.end_, nullptr)) {}
    Stopwatch& operator=(Stopwatch&&) = delete;
    ~Stopwatch() {
        if (begin_ != nullptr) static_cast<void>(cudaEventDestroy(begin_));
        if (end_ != nullptr) static_cast<void>(cudaEventDestroy(end_));
    }

    /// Seconds from one end of what `enqueue` puts on the queue's stream to the other.
    template <class Enqueue>
    Result<double> time(cuda::Queue& queue, Enqueue const& enqueue) {
        DKV_CUDA_TRY(cudaEventRecord(begin_, queue.stream()));
        DKV_TRY(enqueue());
        DKV_CUDA_TRY(cudaEventRecord(end_, queue.stream()));
        DKV_TRY(queue.synchronize());
        float milliseconds = 0;
        DKV_CUDA_TRY(cudaEventElapsedTime(&milliseconds, begin_, end_));
        return static_cast<double>(milliseconds) / 1e3;
    }

private:
    Stopwatch() = default;
    cudaEvent_t begin_ = nullptr;
    cudaEvent_t end_ = nullptr;
};

}  // namespace dkv::gpu
