// Profile files: what `dkv calibrate` writes, JSON, "format": "dkv-profile".
#pragma once

#include <filesystem>

#include "protocol/base/result.h"
#include "sidecar/policy/profile.h"

namespace dkv {

/// Reads the profile at `path`; its name is the model's.
///
/// Errors: Io when it cannot be read; CorruptData when it is no profile, naming what is wrong;
/// Unsupported for another version; and those of check(Profile).
Result<Profile> read_profile(std::filesystem::path const& path);

}  // namespace dkv
