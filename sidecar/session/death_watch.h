#pragma once

#include <cstdint>
#include <vector>

#include "protocol/base/unique_fd.h"

namespace dkv {

/// Says which of the watched processes have ended, without waiting (pidfd_open(2)).
class DeathWatch {
public:
    DeathWatch();

    /// Readable as soon as dead() has something to say; -1 where the system has no such thing.
    int fd() const noexcept { return epoll_.get(); }

    /// Watches until the returned descriptor is closed. Empty: this pid names no process that can
    /// be watched from here (another pid namespace, another machine, or it is dead already).
    UniqueFd watch(std::uint32_t pid, std::uint64_t instance);

    /// The instances whose process has ended.
    std::vector<std::uint64_t> dead();

private:
    UniqueFd epoll_;
};

}  // namespace dkv
