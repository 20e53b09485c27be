// Where an engine's bytes can be found: what the wire's RegionSource says, in our own words.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

namespace dkv {

/// A POSIX shared-memory object, by the name it has in shm_open(3).
struct PosixShmSource {
    std::string name;
};

/// A memfd by the descriptor it has in the engine's process. Descriptors are used again; the inode
/// says that this one still is what the engine meant.
struct MemfdSource {
    std::uint32_t pid = 0;
    int fd = -1;
    std::uint64_t inode = 0;
};

using RegionSource = std::variant<PosixShmSource, MemfdSource>;

/// "memfd 5 of process 1234", "shared memory '/dkv-1'"
std::string describe(RegionSource const& source);

}  // namespace dkv
