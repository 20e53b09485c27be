// Which rows of a layer go where: the orders of protocol/base/kv_layout.h.
#pragma once

#include <cstdint>
#include <vector>

#include "sidecar/pipeline/ranked_layer.h"

namespace dkv {

/// Source rows of a staged layer: in each head the window in position order, then the prefix in
/// rank order. [Σ lengths]
std::vector<std::int32_t> staged_rows(RankedLayer const& layer,
                                      std::uint32_t prefix,
                                      std::uint32_t window);

/// A packed layer, head after head, position-sorted, the window last.
struct PackedRows {
    std::vector<std::int32_t> positions;  ///< [Σ lengths] in the prompt: also the source's rows.
    std::vector<std::int32_t> slots;      ///< [Σ lengths] the same rows in a staged segment.
};
PackedRows packed_rows(RankedLayer const& layer, std::uint32_t prefix, std::uint32_t window);

}  // namespace dkv
