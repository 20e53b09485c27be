// The calibrated profile of the model that a cache was made by, as dkv.hf finds it.
#pragma once

#include "cli/saved/formats/saved_cache.h"
#include "sidecar/policy/params.h"

namespace dkv::offline {

/// Where profiles are looked for: the folders in DKV_PROFILES, those of the cache (DKV_CACHE, else
/// ~/.cache/dkv), and those that come with dkv.
std::vector<std::filesystem::path> profile_folders();

/// The request as the file's model has it: auto and reuse get the first profile that was made for
/// these weights, where none is asked for. Without a fingerprint in the file nothing changes.
PolicyRequest with_own_profile(PolicyRequest request, CacheFacts const& facts);

/// resolve() and sized() for this file. Where a surrogate ranks, its weights are in the file's
/// order of dims.
///
/// Errors: theirs, and Unsupported where a surrogate ranks keys of an order that the file does not
/// say.
Result<PolicyParams> params_for(PolicyRequest const& request, CacheFacts const& facts);

/// As params_for(), of parameters that are resolved: capacity is worked out anew.
Result<PolicyParams> sized_for(PolicyParams const& params, CacheFacts const& facts);

}  // namespace dkv::offline
