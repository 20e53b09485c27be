// "This layer's K and V are written": an engine records, the sidecar waits. No CUDA header here.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "protocol/base/result.h"

namespace dkv::cuda {

/// cudaIpcEventHandle_t.
using EventHandle = std::array<std::byte, 64>;

/// The engine's side: events that go round, named by index. One that was recorded again on another
/// stream may happen before what it stood for did; so only those that have happened are.
class EventPool {
public:
    virtual ~EventPool() = default;
    /// What other processes open them by, exchanged once. Empty: they are this process's own.
    virtual std::vector<EventHandle> const& handles() const noexcept = 0;
    /// The next one to record. Waits on the host while every one of them is still to happen.
    /// Errors: DeadlineExceeded; Device.
    virtual Result<std::uint32_t> next(std::chrono::milliseconds deadline) = 0;
    /// Records event `index` behind the work queued on `stream` (a cudaStream_t; nullptr: the
    /// default stream). Errors: InvalidArgument: index; BadState while a graph is captured; Device.
    virtual Result<void> record(std::uint32_t index, void* stream) = 0;
};
Result<std::unique_ptr<EventPool>> make_event_pool(std::uint32_t count);
/// Of this process alone: they say when something else may be used again.
Result<std::unique_ptr<EventPool>> make_private_event_pool(std::uint32_t count);

/// The sidecar's side.
class OpenedEvents {
public:
    virtual ~OpenedEvents() = default;
    virtual std::uint32_t count() const noexcept = 0;
    /// Waits on the host, by polling, until event `index` has happened: a wait on the device for a
    /// peer that died would never return. `cancelled` is asked between polls.
    ///
    /// Errors: InvalidArgument: index; DeadlineExceeded; Cancelled; Device.
    virtual Result<void> wait(std::uint32_t index,
                              std::chrono::milliseconds deadline,
                              bool (*cancelled)(void*),
                              void* context) const = 0;
};
Result<std::shared_ptr<OpenedEvents const>> open_events(std::span<EventHandle const> handles);

/// The portable choice where interprocess events are not to be had (containers without a common
/// /dev/shm): a 64-bit word of shared device memory that counts up. The engine's stream writes
/// `value` (cuStreamWriteValue64), the sidecar reads it. Writing: BadState while a graph is
/// captured.
Result<void> write_timeline(void* word, std::uint64_t value, void* stream);
Result<void> wait_timeline(void const* word,
                           std::uint64_t value,
                           std::chrono::milliseconds deadline,
                           bool (*cancelled)(void*),
                           void* context);

}  // namespace dkv::cuda
