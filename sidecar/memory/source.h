// Where an engine's bytes can be found: what the wire's RegionSource says, in our own words.
#pragma once

#include <array>
#include <cstddef>
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

/// Device memory of another process, as protocol/device/memory.h has it, less its length and the
/// descriptor: that comes another way, under the ticket.
struct CudaIpcSource {
    std::array<std::byte, 64> handle{};
    std::uint64_t allocation_bytes = 0;
    std::uint64_t offset = 0;
};
struct CudaVmmSource {
    std::uint64_t ticket = 0;
    std::uint64_t allocation_bytes = 0;
    std::uint64_t offset = 0;
};
struct CudaPoolSource {
    std::uint64_t ticket = 0;
    std::array<std::byte, 64> pointer{};
    std::uint64_t allocation_bytes = 0;
    std::uint64_t offset = 0;
};

using RegionSource =
    std::variant<PosixShmSource, MemfdSource, CudaIpcSource, CudaVmmSource, CudaPoolSource>;

/// "memfd 5 of process 1234", "shared memory '/dkv-1'", "CUDA memory by IPC handle"
std::string describe(RegionSource const& source);

/// Device memory whatever the engine is.
bool is_device_memory(RegionSource const& source) noexcept;

}  // namespace dkv
