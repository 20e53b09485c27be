// Device memory of an engine, as regions.
#pragma once

#include <atomic>

#include "sidecar/memory/descriptors.h"
#include "sidecar/memory/region.h"

namespace dkv {

/// Who lends it.
struct RegionOwner {
    std::uint64_t instance = 0;
    std::uint32_t generation = 0;
};

/// Opens device memory on the calling thread's device. Waits for the descriptor where one is to
/// come, unless `cancelled`.
///
/// Errors: those of cuda::open_memory(), naming the source; NotFound when the descriptor does not
/// come; Unsupported for shared memory.
Result<RegionLease> open_region(RegionSource const& source,
                                std::uint64_t bytes,
                                bool writable,
                                RegionOwner const& owner,
                                Descriptors& descriptors,
                                std::atomic<bool> const& cancelled);

}  // namespace dkv
