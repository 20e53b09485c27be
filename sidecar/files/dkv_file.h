// A saved KV cache in dkv's own layout: a safetensors file with, for each layer l,
//
//   layers.{l}.keys       [kv_heads, n_prompt, head_dim]   f32, f16 or bf16, after RoPE
//   layers.{l}.values     the same
//   layers.{l}.q_window   [q_heads, rows, head_dim]        the last rows' queries; or in no layer
//
// and the metadata format "dkv", version "1", model, n_prompt; scale and softcap where the logits
// have them.
#pragma once

#include "protocol/files/mapped_file.h"
#include "sidecar/files/saved_cache.h"

namespace dkv {

/// `path` is for messages and provenance. Errors: as open_cache() says.
Result<std::unique_ptr<SavedCache>> open_dkv_file(MappedFile mapped,
                                                  std::filesystem::path const& path);

}  // namespace dkv
