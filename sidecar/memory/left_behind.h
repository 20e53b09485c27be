// Named shared memory whose engine was killed before its name was gone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dkv {

struct LeftBehind {
    std::size_t objects = 0;
    std::uint64_t bytes = 0;
};

/// Unlinks /dev/shm/dkv-… of this user that no process holds: an engine locks (flock) what it
/// creates, and the lock goes with its process, whatever pid namespace that is in. Says what it
/// unlinked. Nothing that is mapped is lost: only a name goes.
LeftBehind unlink_left_behind() noexcept;

}  // namespace dkv
