// Files that are one layer each: which layer, by their names.
#pragma once

#include <filesystem>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// That `files`, in the order of their numbers, are the layers 0 … n-1. The names are alike but for
/// one number: "model.layers.7.self_attn.attn.safetensors".
///
/// Errors, beginning with the folder: CorruptData, naming it, for a layer that is missing or there
/// twice, and for a file that is not named like the others.
Result<void> check_layer_files(std::filesystem::path const& folder,
                               std::span<std::filesystem::path const> files);

}  // namespace dkv
