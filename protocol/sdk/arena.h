// Memory that an engine lends: shared, sparse, owned here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <sys/types.h>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/dkv.h"

namespace dkv::sdk {

class Arena {
public:
    /// Errors: InvalidArgument for 0 bytes or an unknown kind; Io with errno's text.
    static Result<std::shared_ptr<Arena>> create(std::uint64_t bytes, dkv_arena_kind kind);
    ~Arena();
    Arena(Arena const&) = delete;
    Arena& operator=(Arena const&) = delete;

    std::uint64_t id() const noexcept { return id_; }
    std::byte* base() const noexcept { return base_; }
    std::uint64_t bytes() const noexcept { return bytes_; }

    /// Errors: InvalidArgument for a range outside; Io.
    Result<void> release(std::uint64_t offset, std::uint64_t bytes);
    std::uint64_t allocated_bytes() const noexcept;

    /// How a sidecar finds it: by name while it has one, else through this process's descriptor.
    wire::RegionSourceUnion source();
    /// A sidecar has mapped it: takes the name away, so that a crash leaks nothing.
    void unlink_name();

    /// Held while a sidecar is asked to map it, so that two sessions do not ask twice.
    std::timed_mutex& registering() noexcept { return registering_; }
    /// Runs when the arena goes, on whatever thread that is.
    void on_destroy(std::function<void()> action);

private:
    Arena(std::byte* base, std::uint64_t bytes, int fd, std::uint64_t inode, std::string name);

    std::uint64_t const id_;
    std::byte* const base_;
    std::uint64_t const bytes_;
    int const fd_;
    std::uint64_t const inode_;
    std::timed_mutex registering_;
    std::mutex mutex_;
    std::string name_;  // Of the POSIX object; empty: none, or none any more.
    pid_t const owner_;
    std::vector<std::function<void()>> on_destroy_;
};

}  // namespace dkv::sdk
