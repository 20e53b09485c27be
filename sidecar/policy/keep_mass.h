// A share of the attention instead of a size.
#pragma once

#include <memory>

#include "sidecar/policy/policy.h"

namespace dkv {

/// In every layer the fewest tokens that hold params.keep_mass of the window's attention, the
/// window's own share counted. Tokens are ranked as `ranker` ranks them. Granularity::Layer: as
/// many in every head of a layer; else each head on its own.
std::unique_ptr<Policy> make_keep_mass(std::unique_ptr<Policy> ranker,
                                       PolicyParams const& params,
                                       PromptShape const& shape);

}  // namespace dkv
