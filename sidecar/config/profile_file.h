// Profile files: what `dkv calibrate` writes, JSON, "format": "dkv-profile".
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "protocol/base/result.h"
#include "sidecar/policy/profile.h"

namespace dkv {

/// A profile and what its file says beside it.
struct ProfileFile {
    Profile profile;             ///< Its name is the model's.
    std::string granularity;     ///< "head", or "layer": one weight for the heads of a layer.
    std::uint32_t kv_heads = 0;  ///< Of the model.
    nlohmann::ordered_json model;
    nlohmann::ordered_json recipe;     ///< How it was measured.
    nlohmann::ordered_json figures;    ///< What was measured.
    nlohmann::ordered_json surrogate;  ///< All but its weights; null: there is none.
};

/// Errors: Io when it cannot be read; CorruptData when it is not a profile, naming what is wrong;
/// Unsupported for another version; and those of check(Profile).
Result<ProfileFile> read_profile_file(std::filesystem::path const& path);

/// Its profile alone.
Result<Profile> read_profile(std::filesystem::path const& path);

}  // namespace dkv
