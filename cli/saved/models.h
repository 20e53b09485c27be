// The geometry of a model by its name, by its config.json, or by a cache of its own.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"

namespace dkv::cli {

/// A well-known model.
struct KnownModel {
    std::string_view name;             ///< "llama-3-8b"
    Geometry geometry;                 ///< Of the layers with full attention.
    std::uint32_t layers_bounded = 0;  ///< Others: a sliding window bounds what they keep.
};
std::span<KnownModel const> known_models();

/// A model and what one may want to say about it.
struct ModelGeometry {
    std::string name;
    Geometry geometry;
    std::uint32_t layers_bounded = 0;
    std::optional<std::uint32_t> prompt_tokens = {};  ///< Of a saved cache.
};

/// Hugging Face's config.json. Errors: Io; CorruptData, naming the field.
Result<ModelGeometry> read_config_json(std::filesystem::path const& path);

/// A known model's name; or a path: a config.json, a model's folder with one, a saved cache.
///
/// Errors: NotFound, with the known names; those of reading it.
Result<ModelGeometry> find_model(std::string const& name);

/// "32/8" → query heads and KV heads; "32" → as many of both. Errors: InvalidArgument.
Result<std::pair<std::uint32_t, std::uint32_t>> parse_heads(std::string const& text);

}  // namespace dkv::cli
