#include "protocol/sdk/fences.h"

#include <utility>

#include "protocol/sdk/convert.h"
#include "protocol/sdk/engine.h"

namespace dkv::sdk {
namespace {

/// The sidecar or this process has no interprocess events, and words will do.
bool means_no_events(Error const& error) {
    return error.code == ErrorCode::Unsupported || error.code == ErrorCode::Device;
}

}  // namespace

Result<Fences::Kind> Fences::agree(Engine& engine, std::uint64_t epoch, Deadline deadline) {
    if (epoch_ == epoch) return kind_;
    auto const handles = device_->events();
    if (!handles) {
        if (!means_no_events(handles.error())) return handles.error();
        kind_ = Kind::Timeline;
    } else {
        wire::RegisterEventsT message;
        message.instance = engine.instance();
        message.handles.assign(handles.value().begin(), handles.value().end());
        auto const done = expect<wire::DoneT>(
            engine.connection().call(epoch, body_of(std::move(message)), deadline));
        if (!done && !means_no_events(done.error())) return done.error();
        kind_ = done ? Kind::Events : Kind::Timeline;
    }
    epoch_ = epoch;
    return kind_;
}

Result<Fence> Fences::put(Engine& engine, void* stream, std::uint64_t epoch, Deadline deadline) {
    std::lock_guard const lock(mutex_);
    if (DKV_TRY(agree(engine, epoch, deadline)) == Kind::Timeline)
        return put_word(engine, stream, epoch, deadline);
    auto const event = DKV_TRY(device_->next_event(deadline));
    DKV_TRY(device_->record(event, stream));
    Fence fence;
    fence.event = static_cast<std::int32_t>(event);
    return fence;
}

Result<Fence> Fences::put_word(Engine& engine,
                               void* stream,
                               std::uint64_t epoch,
                               Deadline deadline) {
    // A word each, for two streams that count in one word would overtake each other.
    constexpr std::uint64_t kWordBytes = sizeof(std::uint64_t);
    if (!timeline_) timeline_ = DKV_TRY(device_->allocate(DKV_DEVICE_WORDS * kWordBytes));
    auto const word = DKV_TRY(device_->next_word(deadline));
    Fence fence;
    fence.timeline_region = DKV_TRY(engine.region_of(timeline_, false, epoch, deadline));
    fence.timeline_offset = word * kWordBytes;
    fence.timeline_value = values_[word] + 1;
    DKV_TRY(device_->write_word(word, timeline_->base() + fence.timeline_offset,
                                fence.timeline_value, stream));
    ++values_[word];
    return fence;
}

std::shared_ptr<Arena> Fences::take_timeline() {
    std::lock_guard const lock(mutex_);
    return std::exchange(timeline_, nullptr);
}

}  // namespace dkv::sdk
