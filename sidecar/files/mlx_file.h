// mlx-lm's prompt cache: safetensors with "{l}.0" keys and "{l}.1" values [1, heads, n_l, D], and
// the metadata "0.{l}" (empty), "1.…" (the user's) and "2.{l}" (the class: KVCache alone is known).
// Row r of a layer is at position r.
#pragma once

#include "sidecar/files/tensor_cache.h"

namespace dkv {

/// Errors: as open_cache() says.
Result<std::unique_ptr<SavedCache>> open_mlx_file(TensorFile file, OpenOptions const& options);

}  // namespace dkv
