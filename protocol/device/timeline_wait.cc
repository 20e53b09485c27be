#include "protocol/device/events.h"
#include "protocol/device/host_poll.h"
#include "protocol/device/own_stream.h"

namespace dkv::cuda {

Result<void> wait_timeline(void const* word,
                           std::uint64_t value,
                           std::chrono::milliseconds deadline,
                           bool (*cancelled)(void*),
                           void* context) {
    if (word == nullptr || reinterpret_cast<std::uintptr_t>(word) % sizeof value != 0)
        return Error{ErrorCode::InvalidArgument, "a timeline's word is not aligned to 8 bytes"};
    // Its own: the word is read while everything else on the device goes on.
    auto const stream = DKV_TRY(OwnStream::create());
    return poll_on_host("timeline value " + std::to_string(value), deadline, cancelled, context,
                        [&]() -> Result<bool> {
                            std::uint64_t now = 0;
                            DKV_TRY(stream.copy_to_host(&now, word, sizeof now));
                            return now >= value;
                        });
}

}  // namespace dkv::cuda
