#pragma once

#include <cstdint>
#include <map>

#include "sidecar/memory/region.h"

namespace dkv {

/// The regions that one engine lent, by number.
class RegionTable {
public:
    explicit RegionTable(std::uint32_t regions_max) noexcept : regions_max_(regions_max) {}

    /// Maps the source and numbers it. The same bytes again get the same number, counted: each add
    /// needs its remove.
    /// Errors: those of attach(); LimitExceeded when regions_max are mapped, or descriptors_max of
    /// them cost a descriptor each.
    Result<std::uint64_t> add(RegionSource const& source,
                              std::uint64_t bytes,
                              bool writable,
                              std::uint32_t descriptors_max = UINT32_MAX);

    /// The same for what was mapped elsewhere. Errors: LimitExceeded.
    Result<std::uint64_t> add(RegionLease lease);

    /// Forgets the number; leases that are held keep the mapping. The table's own, for the caller
    /// to let go of; nullptr: it was added more often.
    /// Errors: NotFound.
    Result<RegionLease> remove(std::uint64_t region);

    /// Errors: NotFound.
    Result<RegionLease> find(std::uint64_t region) const;

    std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(regions_.size()); }
    std::uint64_t mapped_bytes() const noexcept;
    /// How many of them cost this process a descriptor.
    std::uint32_t descriptors() const noexcept { return descriptors_; }

private:
    struct Entry {
        RegionLease lease;
        std::uint32_t added = 1;
    };
    std::uint32_t regions_max_;
    std::uint32_t descriptors_ = 0;
    std::uint64_t last_ = 0;
    std::map<std::uint64_t, Entry> regions_;
};

}  // namespace dkv
