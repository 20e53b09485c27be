// An arena of host memory: sparse, zeroed, reached through a descriptor or a name.
#pragma once

#include <sys/types.h>

#include "protocol/sdk/arena.h"
#include "protocol/sdk/dkv.h"

namespace dkv::sdk {

class ShmArena final : public Arena {
public:
    /// Errors: InvalidArgument for 0 bytes or an unknown kind; Io with errno's text.
    static Result<std::shared_ptr<Arena>> create(std::uint64_t bytes, dkv_arena_kind kind);
    ~ShmArena() override;

    Result<void> release(std::uint64_t offset, std::uint64_t bytes) override;
    std::uint64_t allocated_bytes() const noexcept override;
    /// By name while it has one, else through this process's descriptor.
    Result<ArenaSource> source() override;
    /// Takes the name away, so that a crash leaks nothing.
    void on_mapped() override;
    Result<void> read(std::uint64_t offset, std::span<std::byte> target) const override;

private:
    ShmArena(std::byte* base, std::uint64_t bytes, int fd, std::uint64_t inode, std::string name);

    int const fd_;
    std::uint64_t const inode_;
    std::string name_;  // Of the POSIX object; empty: none, or none any more.
    pid_t const owner_;
};

}  // namespace dkv::sdk
