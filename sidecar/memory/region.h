// One region of an engine's memory, mapped here: shared memory, or a device's.
//
// An engine may cut a file that is mapped here, unless it is sealed against shrinking (the SDK's
// memfds are), and /dev/shm may have no room for a page when it is touched. What is missing reads
// as zeros, and what is written there is lost (guarded_memory.h): check_whole() asks before and
// after each layer. The session then fails, and no other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "kernels/tensor_view.h"
#include "protocol/base/result.h"
#include "sidecar/memory/source.h"

namespace dkv {

/// Unmaps on destruction; never unlinks: a name belongs to its creator.
class MappedRegion {
public:
    MappedRegion(MappedRegion const&) = delete;
    MappedRegion& operator=(MappedRegion const&) = delete;
    virtual ~MappedRegion() = default;

    /// Written only where writable() is true. Of a device, nothing here looks at them.
    std::span<std::byte> bytes() const noexcept { return {data_, bytes_}; }
    bool writable() const noexcept { return writable_; }
    Place place() const noexcept { return place_; }
    /// Whether this and `other` are the same bytes, mapped the same way.
    bool same_as(MappedRegion const& other) const noexcept;

    /// Errors: InvalidArgument when the engine has made the file shorter than the mapping; Io when
    /// the system had no page for what was touched. Device memory stays as long as it is mapped.
    virtual Result<void> check_whole() const { return {}; }

    /// Whether it costs this process a descriptor for as long as it is mapped.
    virtual bool holds_descriptor() const noexcept { return false; }

    /// How many bytes of the range (widened to whole pages) the system has pages for. What is
    /// swapped out does not count. Of a device: all of them.
    virtual std::uint64_t bytes_there(std::size_t /*offset*/, std::size_t bytes) const noexcept {
        return bytes;
    }

    /// Lets go of this process's pages of the range (widened to whole pages), so that they do not
    /// count as shared with the engine. The bytes stay; touching them maps them again. Of a device:
    /// nothing happens.
    virtual void drop(std::size_t /*offset*/, std::size_t /*bytes*/) const noexcept {}
    void drop_all() const noexcept { drop(0, bytes_); }

    /// Has `told` called when this is unmapped: by the last holder, in its thread.
    virtual void when_closed(std::function<void()> told) const = 0;

protected:
    MappedRegion() = default;

    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
    bool writable_ = false;
    Place place_ = Place::Host;
    /// What else tells two mappings apart: a file's device and inode, an address.
    std::array<std::uint64_t, 2> identity_{};
};

/// A share of a mapping: it stays mapped while a share exists.
using RegionLease = std::shared_ptr<MappedRegion const>;

/// Maps `bytes` bytes of shared memory, read-only unless `writable`. Device memory and this
/// process's own are for device_region.h.
///
/// Errors: NotFound when the object, process or descriptor is missing; InvalidArgument when it is
/// not shared memory, not the file with that inode, or smaller than `bytes`, or `bytes` is 0;
/// LimitExceeded when this process may open no more files; Io for anything else the operating
/// system refuses; Unsupported for anything but shared memory.
Result<RegionLease> attach(RegionSource const& source, std::uint64_t bytes, bool writable);

}  // namespace dkv
