// A cache as Hugging Face users export it: safetensors with k_{l} and v_{l} [(1,) heads, n, D].
// Compacted ones, as dkv writes them, have positions_{l} I32 [heads, n_l] besides, and n_prompt in
// the metadata.
#pragma once

#include "cli/saved/formats/tensor_cache.h"

namespace dkv {

/// Errors: as open_cache() says.
Result<std::unique_ptr<SavedCache>> open_hf_file(TensorFile file, OpenOptions const& options);

}  // namespace dkv
