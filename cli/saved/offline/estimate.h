// What a policy would keep of a prompt of some length, without data.
#pragma once

#include <optional>
#include <vector>

#include "sidecar/policy/params.h"

namespace dkv::offline {

struct Estimate {
    PolicyParams params;  ///< As used.
    std::uint64_t bytes_full = 0;
    std::uint64_t bytes_kept = 0;
    /// [layers, kv_heads] where budgets do not depend on the prompt's attention; else empty, and
    /// only the sum is known.
    std::vector<std::uint32_t> lengths;
    std::uint64_t peak_bytes = 0;  ///< While prefill runs, live: staged layers and the whole one.
};

/// Errors: those of resolve() and sized(); Unsupported for keep_mass, which needs attention.
Result<Estimate> estimate(Geometry const& geometry,
                          std::uint32_t prompt_tokens,
                          PolicyRequest const& request,
                          std::string_view model = {});

}  // namespace dkv::offline
