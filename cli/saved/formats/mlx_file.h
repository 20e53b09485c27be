// mlx-lm's prompt cache: safetensors with "{l}.0" keys and "{l}.1" values [1, heads, rows, D]. Row
// r of a layer is at position r. There are two generations, and neither program reads the other's:
//
//   before 0.32   metadata "0.{l}" "", "1.…" the user's, "2.{l}" the class; as many rows as tokens
//   0.32 on       metadata "0.…" the user's, "1.{l}" the class, "2.0" "", "2.{i}.0" the name of a
//                 state that is not an array and "2.{i}.1" what it is; "{l}.2" I32 [] is the number
//                 of tokens, and behind them keys and values have room for more, whatever is there
//
// The class KVCache alone is known.
#pragma once

#include "cli/saved/formats/tensor_cache.h"

namespace dkv {

/// Errors: as open_cache() says; Unsupported, naming layer and class, for another class.
Result<std::unique_ptr<SavedCache>> open_mlx_file(TensorFile file, OpenOptions const& options);

}  // namespace dkv
