// Stretches of a stream, timed by events. For files that include CUDA's headers.
#pragma once

#include <utility>
#include <vector>

#include "kernels/cuda/queue.h"
#include "protocol/device/cuda_try.h"

namespace dkv::gpu {

/// Pairs of events, one for each run, so that a run's time has nothing of its neighbours'.
class Laps {
public:
    static Result<Laps> create(unsigned runs) {
        Laps laps;
        for (unsigned i = 0; i < 2 * runs; ++i) {
            laps.events_.push_back(nullptr);
            DKV_CUDA_TRY(cudaEventCreate(&laps.events_.back()));
        }
        return laps;
    }
    Laps(Laps&& other) noexcept : events_(std::exchange(other.events_, {})) {}
    Laps& operator=(Laps&&) = delete;
    ~Laps() {
        for (cudaEvent_t const event : events_)
            if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
    }

    /// Seconds of each run of `body`, from one end of what it puts on the queue's stream to the
    /// other. `before` is put there first and not timed: while the device is at it, the host is
    /// through with enqueuing `body`, whose launches then follow each other without a gap.
    template <class Before, class Body>
    Result<std::vector<double>> time(cuda::Queue& queue, Before const& before, Body const& body) {
        for (std::size_t i = 0; i < events_.size(); i += 2) {
            DKV_TRY(before());
            DKV_CUDA_TRY(cudaEventRecord(events_[i], queue.stream()));
            DKV_TRY(body());
            DKV_CUDA_TRY(cudaEventRecord(events_[i + 1], queue.stream()));
        }
        DKV_TRY(queue.synchronize());
        std::vector<double> seconds;
        for (std::size_t i = 0; i < events_.size(); i += 2) {
            float milliseconds = 0;
            DKV_CUDA_TRY(cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]));
            seconds.push_back(static_cast<double>(milliseconds) / 1e3);
        }
        return seconds;
    }

private:
    Laps() = default;
    std::vector<cudaEvent_t> events_;
};

}  // namespace dkv::gpu
