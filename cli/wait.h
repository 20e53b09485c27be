#pragma once

#include <algorithm>
#include <chrono>
#include <functional>

#include "cli/command.h"

namespace dkv::cli {

constexpr std::chrono::milliseconds kLook{2000};  // Between two passes over folders.

/// Whether all of `time` passed before `stopped` said so.
inline bool wait(Environment const& environment,
                 std::function<bool()> const& stopped,
                 std::chrono::milliseconds time) {
    constexpr std::chrono::milliseconds kTick{200};  // How soon a signal is seen.
    for (std::chrono::milliseconds waited{0}; waited < time; waited += kTick) {
        if (stopped()) return false;
        environment.pause(std::min(kTick, time - waited));
    }
    return !stopped();
}

}  // namespace dkv::cli
