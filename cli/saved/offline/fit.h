// How many tokens a file may hold, and what is added or taken so that it holds them.
#pragma once

#include <functional>

#include "sidecar/pipeline/plan.h"

namespace dkv::offline {

/// The size of the file that holds these lengths. [layers, kv_heads]
using SizeOf = std::function<Result<std::uint64_t>(std::vector<std::uint32_t> const& lengths)>;

/// `params` with the largest capacity whose file has at most `bytes`; a capacity of the whole
/// prompt where all of it fits. Where budgets follow from the attention, or `as_if_equal`, as if
/// they were equal.
///
/// Errors: InvalidArgument when the window alone does not fit; those of sized() and `size_of`.
Result<PolicyParams> capacity_for_bytes(std::uint64_t bytes,
                                        PolicyParams const& params,
                                        Geometry const& geometry,
                                        std::uint32_t prompt_tokens,
                                        bool as_if_equal,
                                        SizeOf const& size_of);

/// Takes tokens from the last layers until the file fits, or gives the first layers their next best
/// as long as it does: one for each head of a layer. `uniform`: every layer alike, or none.
Result<void> fit(Plan& plan, std::uint64_t bytes, bool uniform, SizeOf const& size_of);

/// What has to be as long as what.
enum class Alike : std::uint8_t { Nothing, HeadsOfALayer, Everything };

/// Fills heads up to the longest with their next best tokens. Returns the longest, and whether any
/// was shorter. The ranks reach as far.
struct Filled {
    std::uint32_t shortest = 0;  ///< Rows before, window included.
    std::uint32_t longest = 0;
};
Filled fill(Plan& plan, Alike alike);

/// How many more tokens than its own limits say a layer needs ranked for fill().
std::uint32_t spare_to_fill(Policy const& policy, std::uint32_t layers);

}  // namespace dkv::offline
