// A saved KV cache in dkv's own layout (protocol/container/dkv_plan.h, docs/FORMATS.md).
#pragma once

#include "cli/saved/formats/tensor_cache.h"

namespace dkv {

/// Errors: as open_cache() says; a tensor that has no place in such a file, checksums of some
/// tensors but not of others, or a header that is not what it was written as.
Result<std::unique_ptr<SavedCache>> open_dkv_file(TensorFile file, OpenOptions const& options);

}  // namespace dkv
