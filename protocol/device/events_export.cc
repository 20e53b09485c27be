#include <cstring>

#include "protocol/device/capture_check.h"
#include "protocol/device/cuda_try.h"
#include "protocol/device/events.h"
#include "protocol/device/host_poll.h"

namespace dkv::cuda {
namespace {

class Events final : public EventPool {
public:
    Events() = default;
    Events(Events const&) = delete;
    Events& operator=(Events const&) = delete;
    ~Events() override {
        for (cudaEvent_t const event : events_)
            static_cast<void>(cudaEventDestroy(event));
    }

    Result<cudaEvent_t> add(unsigned flags) {
        cudaEvent_t event = nullptr;
        DKV_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | flags));
        return events_.emplace_back(event);
    }
    Result<void> add_shared() {
        auto* const event = DKV_TRY(add(cudaEventInterprocess));
        cudaIpcEventHandle_t handle{};
        static_assert(sizeof handle == sizeof(EventHandle));
        DKV_CUDA_TRY(cudaIpcGetEventHandle(&handle, event));
        std::memcpy(handles_.emplace_back().data(), &handle, sizeof handle);
        return {};
    }

    std::vector<EventHandle> const& handles() const noexcept override { return handles_; }

    Result<std::uint32_t> next(std::chrono::milliseconds deadline) override {
        std::uint32_t found = 0;
        auto const look = [&]() -> Result<bool> {
            for (std::size_t tried = 0; tried < events_.size(); ++tried) {
                found = next_;
                next_ = static_cast<std::uint32_t>((next_ + 1) % events_.size());
                if (DKV_TRY(has_happened(events_[found]))) return true;
            }
            return false;
        };
        DKV_TRY(poll_on_host("one of " + std::to_string(events_.size()) + " events in flight",
                             deadline, nullptr, nullptr, look));
        return found;
    }

    Result<void> record(std::uint32_t index, void* stream) override {
        if (index >= events_.size())
            return Error{ErrorCode::InvalidArgument, "event " + std::to_string(index) +
                                                         " of a pool of " +
                                                         std::to_string(events_.size())};
        auto const queue = static_cast<cudaStream_t>(stream);
        DKV_TRY(check_not_captured(queue));
        DKV_CUDA_TRY(cudaEventRecord(events_[index], queue));
        return {};
    }

private:
    static Result<bool> has_happened(cudaEvent_t event) {
        cudaError_t const status = cudaEventQuery(event);
        if (status != cudaErrorNotReady) {
            DKV_CUDA_TRY(status);
            return true;
        }
        static_cast<void>(cudaGetLastError());
        return false;
    }

    std::vector<cudaEvent_t> events_;
    std::vector<EventHandle> handles_;
    std::uint32_t next_ = 0;
};

}  // namespace

Result<std::unique_ptr<EventPool>> make_event_pool(std::uint32_t count) {
    auto pool = std::make_unique<Events>();
    for (std::uint32_t at = 0; at < count; ++at)
        DKV_TRY(pool->add_shared());
    return std::unique_ptr<EventPool>(std::move(pool));
}

Result<std::unique_ptr<EventPool>> make_private_event_pool(std::uint32_t count) {
    auto pool = std::make_unique<Events>();
    for (std::uint32_t at = 0; at < count; ++at)
        DKV_TRY(pool->add(0));
    return std::unique_ptr<EventPool>(std::move(pool));
}

}  // namespace dkv::cuda
