// Waiting for a device on the host. A wait on the device for a peer that died never returns, and
// takes its stream with it; this one has an end.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "protocol/base/result.h"

namespace dkv::cuda {

/// Asks `happened` (→ Result<bool>) again and again: at once, then after ever longer sleeps, up to
/// a millisecond, so that nothing burns while an engine thinks.
///
/// Errors: those of `happened`; DeadlineExceeded, naming `what`; Cancelled.
template <class Happened>
Result<void> poll_on_host(std::string const& what,
                          std::chrono::milliseconds deadline,
                          bool (*cancelled)(void*),
                          void* context,
                          Happened const& happened) {
    using Clock = std::chrono::steady_clock;
    constexpr std::chrono::microseconds kSleepLeast{10};
    constexpr std::chrono::microseconds kSleepMost{1000};
    auto const end = Clock::now() + deadline;
    for (auto sleep = kSleepLeast;; sleep = std::min(2 * sleep, kSleepMost)) {
        if (DKV_TRY(happened())) return {};
        if (cancelled != nullptr && cancelled(context))
            return Error{ErrorCode::Cancelled, "the wait for " + what + " was cancelled"};
        if (Clock::now() >= end)
            return Error{ErrorCode::DeadlineExceeded, what + " did not happen within " +
                                                          std::to_string(deadline.count()) + " ms"};
        std::this_thread::sleep_for(sleep);
    }
}

}  // namespace dkv::cuda
