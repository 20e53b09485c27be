// A folder of vLLM's ExampleConnector: one safetensors file per layer, with one tensor `kv_cache`.
// Its shape is one of
//
//   2THD   [2, tokens, heads, head_dim]   or [2, tokens, heads · head_dim]
//   T2HD   [tokens, 2, heads, head_dim]   or [tokens, 2, heads · head_dim]
//   TH2D   [tokens, heads, 2 · head_dim]
//
// and nothing in the file says which.
#pragma once

#include "cli/saved/formats/saved_cache.h"

namespace dkv {

/// Whether that is what `path` is, readable or not: of the files that are safetensors, most have a
/// kv_cache.
bool is_vllm_folder(std::filesystem::path const& path);

/// `path` holds the layers, or one folder that holds them. Rows are views into the files.
///
/// Errors: as open_cache() says; CorruptData, naming it, for a layer that is missing or there
/// twice; Unsupported, naming --layout or --kv-heads, for a shape that can be read in two ways, and
/// for MLA's.
Result<std::unique_ptr<SavedCache>> open_vllm_folder(std::filesystem::path const& path,
                                                     OpenOptions const& options);

}  // namespace dkv
