#include "protocol/device/events.h"

#include "protocol/device/none/without_cuda.h"

namespace dkv::cuda {

Result<std::unique_ptr<EventPool>> make_event_pool(std::uint32_t /*count*/) {
    return without_cuda();
}
Result<std::unique_ptr<EventPool>> make_private_event_pool(std::uint32_t /*count*/) {
    return without_cuda();
}
Result<std::shared_ptr<OpenedEvents const>> open_events(std::span<EventHandle const> /*handles*/) {
    return without_cuda();
}
Result<void> write_timeline(void* /*word*/, std::uint64_t /*value*/, void* /*stream*/) {
    return without_cuda();
}
Result<void> wait_timeline(void const* /*word*/,
                           std::uint64_t /*value*/,
                           std::chrono::milliseconds /*deadline*/,
                           bool (* /*cancelled*/)(void*),
                           void* /*context*/) {
    return without_cuda();
}

}  // namespace dkv::cuda
