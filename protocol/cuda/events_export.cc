#include <cstring>

#include "protocol/cuda/cuda_try.h"
#include "protocol/cuda/events.h"

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

    Result<void> add() {
        cudaEvent_t event = nullptr;
        DKV_CUDA_TRY(
            cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess));
        events_.push_back(event);
        cudaIpcEventHandle_t handle{};
        static_assert(sizeof handle == sizeof(EventHandle));
        DKV_CUDA_TRY(cudaIpcGetEventHandle(&handle, event));
        std::memcpy(handles_.emplace_back().data(), &handle, sizeof handle);
        return {};
    }

    std::vector<EventHandle> handles() const override { return handles_; }

    Result<void> record(std::uint32_t index, void* stream) override {
        if (index >= events_.size())
            return Error{ErrorCode::InvalidArgument, "event " + std::to_string(index) +
                                                         " of a pool of " +
                                                         std::to_string(events_.size())};
        DKV_CUDA_TRY(cudaEventRecord(events_[index], static_cast<cudaStream_t>(stream)));
        return {};
    }

private:
    std::vector<cudaEvent_t> events_;
    std::vector<EventHandle> handles_;
};

}  // namespace

Result<std::unique_ptr<EventPool>> make_event_pool(std::uint32_t count) {
    auto pool = std::make_unique<Events>();
    for (std::uint32_t at = 0; at < count; ++at)
        DKV_TRY(pool->add());
    return std::unique_ptr<EventPool>(std::move(pool));
}

}  // namespace dkv::cuda
