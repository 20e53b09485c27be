// Budgets from what was measured of the model.
#pragma once

#include "sidecar/policy/policy.h"

namespace dkv {

/// Budgets in proportion to weight^alpha, at least ceil(floor * base) and at most the prefix, that
/// add up to base * layers * kv_heads. A profile per layer gives every head of a layer the same.
///
/// Weights become integers of at most 2^32, rounded half to even, so that `dkv eval` in Python and
/// this give the same budgets to the token. The profile is for this shape: sized() has checked.
HeadBudgets profile_budgets(Profile const& profile, std::uint32_t base, PromptShape const& shape);

}  // namespace dkv
