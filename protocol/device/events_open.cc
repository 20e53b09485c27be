#include <cstring>

#include "protocol/device/cuda_try.h"
#include "protocol/device/device_guard.h"
#include "protocol/device/events.h"
#include "protocol/device/host_poll.h"

namespace dkv::cuda {
namespace {

class Opened final : public OpenedEvents {
public:
    explicit Opened(int device) noexcept : device_(device) {}
    Opened(Opened const&) = delete;
    Opened& operator=(Opened const&) = delete;
    ~Opened() override {
        auto const guard = DeviceGuard::enter(device_);
        for (cudaEvent_t const event : events_)
            static_cast<void>(cudaEventDestroy(event));
        static_cast<void>(cudaGetLastError());
    }

    Result<void> add(EventHandle const& bytes) {
        cudaIpcEventHandle_t handle{};
        static_assert(sizeof handle == sizeof bytes);
        std::memcpy(&handle, bytes.data(), sizeof handle);
        cudaEvent_t event = nullptr;
        DKV_CUDA_TRY(cudaIpcOpenEventHandle(&event, handle));
        events_.push_back(event);
        return {};
    }

    std::uint32_t count() const noexcept override {
        return static_cast<std::uint32_t>(events_.size());
    }

    Result<void> wait(std::uint32_t index,
                      std::chrono::milliseconds deadline,
                      bool (*cancelled)(void*),
                      void* context) const override {
        if (index >= events_.size())
            return Error{ErrorCode::InvalidArgument, "event " + std::to_string(index) +
                                                         " of a pool of " +
                                                         std::to_string(events_.size())};
        return poll_on_host("event " + std::to_string(index), deadline, cancelled, context,
                            [event = events_[index]]() -> Result<bool> {
                                cudaError_t const status = cudaEventQuery(event);
                                if (status == cudaErrorNotReady) {
                                    static_cast<void>(cudaGetLastError());
                                    return false;
                                }
                                DKV_CUDA_TRY(status);
                                return true;
                            });
    }

private:
    int const device_;
    std::vector<cudaEvent_t> events_;
};

}  // namespace

Result<std::shared_ptr<OpenedEvents const>> open_events(std::span<EventHandle const> handles) {
    int device = 0;
    DKV_CUDA_TRY(cudaGetDevice(&device));
    auto events = std::make_shared<Opened>(device);
    for (auto const& handle : handles)
        DKV_TRY(events->add(handle));
    return std::shared_ptr<OpenedEvents const>(std::move(events));
}

}  // namespace dkv::cuda
