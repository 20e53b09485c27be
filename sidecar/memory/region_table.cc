#include "sidecar/memory/region_table.h"

#include <string>

namespace dkv {
namespace {

Error no_region(std::uint64_t region) {
    return {ErrorCode::NotFound, "no region " + std::to_string(region) + " is registered"};
}

}  // namespace

Result<std::uint64_t> RegionTable::add(RegionSource const& source,
                                       std::uint64_t bytes,
                                       bool writable,
                                       std::uint32_t descriptors_max) {
    auto lease = DKV_TRY(attach(source, bytes, writable));
    if (lease->holds_descriptor() && descriptors_ >= descriptors_max)
        return Error{ErrorCode::LimitExceeded,
                     describe(source) +
                         " can shrink, so that it costs the sidecar a descriptor, "
                         "and none is left for it: seal it (F_SEAL_SHRINK)"};
    return add(std::move(lease));
}

Result<std::uint64_t> RegionTable::add(RegionLease lease) {
    for (auto& [number, entry] : regions_) {
        if (!entry.lease->same_as(*lease)) continue;
        ++entry.added;
        return number;
    }
    if (regions_.size() >= regions_max_)
        return Error{ErrorCode::LimitExceeded,
                     "this engine has " + std::to_string(regions_.size()) +
                         " regions; the limit is " + std::to_string(regions_max_)};
    if (lease->holds_descriptor()) ++descriptors_;
    regions_.emplace(++last_, Entry{std::move(lease)});
    return last_;
}

Result<RegionLease> RegionTable::remove(std::uint64_t region) {
    auto const found = regions_.find(region);
    if (found == regions_.end()) return no_region(region);
    if (--found->second.added != 0) return RegionLease();
    auto lease = std::move(found->second.lease);
    if (lease->holds_descriptor()) --descriptors_;
    regions_.erase(found);
    return lease;
}

Result<RegionLease> RegionTable::find(std::uint64_t region) const {
    auto const found = regions_.find(region);
    if (found == regions_.end()) return no_region(region);
    return found->second.lease;
}

std::uint64_t RegionTable::mapped_bytes() const noexcept {
    std::uint64_t total = 0;
    for (auto const& [number, entry] : regions_)
        total += entry.lease->bytes().size();
    return total;
}

}  // namespace dkv
