// Memory that an engine lends: shared, owned here, in host memory (shm_arena.h) or on a device
// (device_arena.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::sdk {

/// How a sidecar finds an arena.
struct ArenaSource {
    wire::RegionSourceUnion region;
    UniqueFd file;             ///< Goes to the sidecar before the message, under `ticket`.
    std::uint64_t ticket = 0;  ///< The one in `region`; 0: there is no file.
};

class Arena {
public:
    /// Tells one sidecar to let go. Waits for its word while `memory` is not null, and keeps that
    /// until the word comes. Errors: DeadlineExceeded, when it did not come in time.
    using Detach = std::function<Result<void>(std::shared_ptr<void> memory)>;

    Arena(std::byte* base, std::uint64_t bytes);
    Arena(Arena const&) = delete;
    Arena& operator=(Arena const&) = delete;
    virtual ~Arena() = default;

    std::uint64_t id() const noexcept { return id_; }
    /// Of a device's memory: not to be followed on the host.
    std::byte* base() const noexcept { return base_; }
    std::uint64_t bytes() const noexcept { return bytes_; }

    /// "cpu", or the UUID of the device.
    virtual std::string_view device() const noexcept { return "cpu"; }
    bool is_host() const noexcept { return device() == "cpu"; }
    /// Gives back what can be given back of the range: whole pages, or a whole device allocation.
    /// Errors: InvalidArgument for a range outside; Io; Device; DeadlineExceeded.
    virtual Result<void> release(std::uint64_t offset, std::uint64_t bytes) = 0;
    virtual std::uint64_t allocated_bytes() const noexcept = 0;
    /// False once all of a device's memory was released: there is nothing to lend any more.
    virtual bool is_there() const noexcept { return true; }

    /// Errors: Unsupported for memory that cannot be shared; Device.
    virtual Result<ArenaSource> source() = 0;
    /// A sidecar has mapped it.
    virtual void on_mapped() {}
    /// Copies to the host. Errors: Device.
    virtual Result<void> read(std::uint64_t offset, std::span<std::byte> target) const = 0;

    /// Held while a sidecar is asked to map it, so that two sessions do not ask twice.
    std::timed_mutex& registering() noexcept { return registering_; }
    /// Runs when the memory goes, on whatever thread that is.
    void on_detach(Detach action);

protected:
    Result<void> check_range(std::uint64_t offset, std::uint64_t bytes) const;
    /// Every sidecar that was told of this is told to let go, once. The first error.
    Result<void> detach(std::shared_ptr<void> const& memory);
    std::mutex& mutex() noexcept { return mutex_; }

private:
    std::uint64_t const id_;
    std::byte* const base_;
    std::uint64_t const bytes_;
    std::timed_mutex registering_;
    std::mutex mutex_;
    std::vector<Detach> on_detach_;
};

}  // namespace dkv::sdk
