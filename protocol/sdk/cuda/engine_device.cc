#include "protocol/sdk/cuda/engine_device.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "protocol/device/device_guard.h"
#include "protocol/device/events.h"
#include "protocol/sdk/cuda/guarded.h"
#include "protocol/sdk/cuda/memory.h"

namespace dkv::sdk_cuda {
namespace {

// Enough that two prompts at once need not wait for each other's.
constexpr std::uint32_t kEventsMin = 16;
constexpr std::uint32_t kEventsMax = DKV_DEVICE_WORDS;

/// What `self` points to.
struct EngineDevice {
    cuda::Device device;
    std::uint32_t events_wanted = kEventsMin;
    std::mutex mutex;
    std::unique_ptr<cuda::EventPool> events;  // Made when the first layer asks for one.
    std::unique_ptr<cuda::EventPool> words;   // Behind the last value of each word.
};

/// What an operator says where events cannot be shared, to spare the attempt.
Result<void> check_events_wanted() {
    char const* const set = std::getenv("DKV_CUDA_EVENTS");
    std::string_view const wish = set == nullptr ? "" : set;
    if (wish.empty() || wish == "ipc") return {};
    if (wish == "timeline")
        return Error{ErrorCode::Unsupported, "DKV_CUDA_EVENTS is timeline: no events are shared"};
    return Error{ErrorCode::InvalidArgument,
                 "DKV_CUDA_EVENTS is '" + std::string(wish) + "', neither ipc nor timeline"};
}

EngineDevice& of(void* self) {
    return *static_cast<EngineDevice*>(self);
}

dkv_status allocate_for_session(void* self,
                                std::uint64_t bytes,
                                dkv_device_memory* memory,
                                char* error) {
    return answered(error, [&]() -> Result<void> {
        *memory = DKV_TRY(allocate(of(self).device, bytes, DKV_CUDA_ARENA_DEFAULT));
        return {};
    });
}

dkv_status events(void* self, unsigned char const** handles, std::uint32_t* count, char* error) {
    return answered(error, [&]() -> Result<void> {
        DKV_TRY(check_events_wanted());
        auto& device = of(self);
        std::lock_guard const lock(device.mutex);
        if (!device.events) {
            auto const guard = DKV_TRY(cuda::DeviceGuard::enter(device.device.ordinal));
            device.events = DKV_TRY(cuda::make_event_pool(device.events_wanted));
        }
        static_assert(sizeof(cuda::EventHandle) == DKV_DEVICE_HANDLE_BYTES);
        auto const& all = device.events->handles();
        *handles = reinterpret_cast<unsigned char const*>(all.data());
        *count = static_cast<std::uint32_t>(all.size());
        return {};
    });
}

dkv_status next_event(void* self, std::uint32_t timeout_ms, std::uint32_t* event, char* error) {
    return answered(error, [&]() -> Result<void> {
        auto const guard = DKV_TRY(cuda::DeviceGuard::enter(of(self).device.ordinal));
        *event = DKV_TRY(of(self).events->next(std::chrono::milliseconds(timeout_ms)));
        return {};
    });
}

dkv_status record(void* self, std::uint32_t event, void* stream, char* error) {
    return answered(error, [&]() -> Result<void> {
        auto const guard = DKV_TRY(cuda::DeviceGuard::enter(of(self).device.ordinal));
        return of(self).events->record(event, stream);
    });
}

dkv_status next_word(void* self, std::uint32_t timeout_ms, std::uint32_t* word, char* error) {
    return answered(error, [&]() -> Result<void> {
        auto& device = of(self);
        auto const guard = DKV_TRY(cuda::DeviceGuard::enter(device.device.ordinal));
        if (!device.words)
            device.words = DKV_TRY(cuda::make_private_event_pool(device.events_wanted));
        *word = DKV_TRY(device.words->next(std::chrono::milliseconds(timeout_ms)));
        return {};
    });
}

dkv_status write_word(
    void* self, std::uint32_t word, void* address, std::uint64_t value, void* stream, char* error) {
    return answered(error, [&]() -> Result<void> {
        auto const guard = DKV_TRY(cuda::DeviceGuard::enter(of(self).device.ordinal));
        DKV_TRY(cuda::write_timeline(address, value, stream));
        return of(self).words->record(word, stream);
    });
}

void free_device(void* self) {
    std::unique_ptr<EngineDevice> const device(&of(self));
    auto const guard = cuda::DeviceGuard::enter(device->device.ordinal);
    device->events.reset();
    device->words.reset();
}

}  // namespace

Result<dkv_device> device_functions(std::string_view uuid, std::uint32_t layers) {
    auto device = std::make_unique<EngineDevice>();
    device->device = DKV_TRY(cuda::find_device(uuid));
    device->events_wanted = std::clamp(2 * std::min(layers, kEventsMax), kEventsMin, kEventsMax);
    dkv_device functions{};
    functions.uuid = device->device.uuid.c_str();
    functions.allocate = allocate_for_session;
    functions.events = events;
    functions.next_event = next_event;
    functions.record = record;
    functions.next_word = next_word;
    functions.write_word = write_word;
    functions.free = free_device;
    functions.self = device.release();
    return functions;
}

}  // namespace dkv::sdk_cuda
