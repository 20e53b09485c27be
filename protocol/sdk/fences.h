// "This layer's rows are written", said before they are: by an event of a pool that the sidecar
// knows, or, where events cannot be shared, by a word of device memory that counts up.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>

#include "protocol/base/result.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/clock.h"
#include "protocol/sdk/device.h"

namespace dkv::sdk {

class Engine;

/// What LayerReady says of it.
struct Fence {
    std::int32_t event = -1;
    std::uint64_t timeline_region = 0;
    std::uint64_t timeline_offset = 0;
    std::uint64_t timeline_value = 0;
};

/// An engine's. Events and words go round, those that have happened: one that is used again before
/// the sidecar looked at it makes it wait for the later layer, which does no harm. One that is
/// still to happen, used again on another stream, would be there too early.
class Fences {
public:
    explicit Fences(std::shared_ptr<Device const> device) : device_(std::move(device)) {}

    /// Behind everything that is queued on `stream` now. Does not wait for that; waits for the
    /// sidecar once per attachment, which has to open the events, and while every event is in
    /// flight. Errors: of Connection::call; DeadlineExceeded; BadState while a graph is captured;
    /// Device.
    Result<Fence> put(Engine& engine, void* stream, std::uint64_t epoch, Deadline deadline);
    /// The words' memory; null: none was needed.
    std::shared_ptr<Arena> take_timeline();

private:
    enum class Kind { Events, Timeline };
    Result<Kind> agree(Engine& engine, std::uint64_t epoch, Deadline deadline);
    Result<Fence> put_word(Engine& engine, void* stream, std::uint64_t epoch, Deadline deadline);

    std::shared_ptr<Device const> const device_;
    std::mutex mutex_;
    std::uint64_t epoch_ = 0;  // In which the kind was agreed on; 0: none.
    Kind kind_ = Kind::Events;
    std::shared_ptr<Arena> timeline_;
    std::array<std::uint64_t, DKV_DEVICE_WORDS> values_{};  // What each word counts up to.
};

}  // namespace dkv::sdk
