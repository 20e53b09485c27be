// The calibrated profile of the model that a cache was made by, as dkv.hf finds it.
#pragma once

#include "cli/saved/formats/saved_cache.h"
#include "sidecar/policy/params.h"

namespace dkv::offline {

/// Where profiles are looked for: the folders in DKV_PROFILES, those of the cache (DKV_CACHE, else
/// ~/.cache/dkv), and those that come with dkv.
std::vector<std::filesystem::path> profile_folders();

/// The files in them, in the order in which they are tried; not all need be profiles.
std::vector<std::filesystem::path> profile_files();

/// The first profile that was made for the weights whose fingerprint the file has; nullptr: there
/// is none, or no fingerprint. Reads every profile on the way.
std::shared_ptr<Profile> own_profile(CacheFacts const& facts);

/// The fingerprint of its model's weights; empty: the file has none.
std::string weights_of(CacheFacts const& facts);

/// The request with that profile, where none is asked for and takes_own_profile() says that the
/// policy takes it.
PolicyRequest with_own_profile(PolicyRequest request, CacheFacts const& facts);

/// resolve() and sized() for this file. Where a surrogate ranks, its weights are in the file's
/// order of dims.
///
/// Errors: theirs, and Unsupported where a surrogate ranks keys of an order that the file does not
/// say.
Result<PolicyParams> params_for(PolicyRequest const& request, CacheFacts const& facts);

/// The profile's surrogate with its weights in the file's order of dims.
///
/// Errors: Unsupported, where the file does not say how its keys lie.
Result<std::shared_ptr<Surrogate const>> in_order_of(CacheFacts const& facts,
                                                     Profile const& profile);

/// As params_for(), of parameters that are resolved: capacity is worked out anew.
Result<PolicyParams> sized_for(PolicyParams const& params, CacheFacts const& facts);

}  // namespace dkv::offline
