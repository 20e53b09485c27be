// One shared-memory region of an engine, mapped here.
//
// An engine may cut a file that is mapped here, and a touch past the new end is a SIGBUS. A memfd
// that is sealed against shrinking cannot be cut (the SDK's are); for every other region
// check_size() asks again before each layer. What is left is an engine that cuts an unsealed file
// during the few milliseconds of one kernel: that stops the sidecar, the supervisor starts it
// again, and every engine goes on uncompressed meanwhile. A guard around each kernel would cost
// more than that is worth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"
#include "sidecar/memory/source.h"

namespace dkv {

/// Unmaps on destruction; never unlinks: names belong to whoever created them.
class MappedRegion {
public:
    MappedRegion(MappedRegion const&) = delete;
    MappedRegion& operator=(MappedRegion const&) = delete;
    ~MappedRegion();

    /// Written only where writable() is true; the mapping is read-only otherwise.
    std::span<std::byte> bytes() const noexcept { return {data_, bytes_}; }
    bool writable() const noexcept { return writable_; }
    /// Whether this and `other` are the same bytes, mapped the same way.
    bool same_as(MappedRegion const& other) const noexcept;

    /// Errors: InvalidArgument when the engine has made the file shorter than the mapping.
    Result<void> check_size() const;

    /// Lets go of this process's pages of the range (widened to whole pages), so that they do not
    /// count as shared with the engine. The bytes stay; touching them maps them again.
    void drop(std::size_t offset, std::size_t bytes) const noexcept;
    void drop_all() const noexcept { drop(0, bytes_); }

private:
    friend Result<std::shared_ptr<MappedRegion const>> attach(RegionSource const&,
                                                              std::uint64_t,
                                                              bool);
    MappedRegion() = default;

    UniqueFd file_;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
    std::uint64_t device_ = 0;
    std::uint64_t inode_ = 0;
    bool writable_ = false;
    bool can_shrink_ = true;
};

/// A share of a mapping: it stays mapped while somebody holds one.
using RegionLease = std::shared_ptr<MappedRegion const>;

/// Maps `bytes` bytes of the source, read-only unless `writable`.
///
/// Errors: NotFound when there is no such object, process or descriptor; InvalidArgument when it is
/// not shared memory, not the file with that inode, or smaller than `bytes`, or `bytes` is 0;
/// LimitExceeded when this process may open no more files; Io for anything else the operating
/// system refuses.
Result<RegionLease> attach(RegionSource const& source, std::uint64_t bytes, bool writable);

}  // namespace dkv
