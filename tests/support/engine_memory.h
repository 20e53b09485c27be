// An engine's shared memory, lent by this very process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol/base/peer.h"
#include "protocol/base/unique_fd.h"

namespace dkv::test {

/// A memfd, mapped read-write, zeroed.
class EngineMemory {
public:
    explicit EngineMemory(std::size_t bytes, unsigned flags = 0)
        : fd_(::memfd_create("dkv-test", MFD_CLOEXEC | flags)), bytes_(bytes) {
        REQUIRE(::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0);
        data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
        REQUIRE(data_ != MAP_FAILED);
    }
    EngineMemory(EngineMemory const&) = delete;
    EngineMemory& operator=(EngineMemory const&) = delete;
    ~EngineMemory() { ::munmap(data_, bytes_); }

    int fd() const noexcept { return fd_.get(); }
    std::uint64_t inode() const {
        struct stat info {};
        REQUIRE(::fstat(fd_.get(), &info) == 0);
        return info.st_ino;
    }
    std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(data_), bytes_}; }
    template <class T>
    T* at(std::uint64_t offset) const noexcept {
        return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
    }

private:
    UniqueFd fd_;
    std::size_t bytes_;
    void* data_ = nullptr;
};

inline PeerCredentials own_process() {
    return {::geteuid(), ::getpid()};
}
inline std::uint32_t own_pid() {
    return static_cast<std::uint32_t>(::getpid());
}

}  // namespace dkv::test
