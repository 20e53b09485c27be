// Files that have a tensor of keys and one of values per layer, [(1,) heads, rows, head_dim].
#pragma once

#include "sidecar/files/tensor_cache.h"

namespace dkv {

/// Fills geometry and layers from the tensors that the two name, as many as there are; rows may
/// differ between layers.
///
/// Errors: CorruptData, naming the tensor, unless all are of one shape but for the rows;
/// Unsupported for more than one sequence.
struct Pairs {
    Geometry geometry;
    std::vector<LayerTensors> layers;
    std::uint32_t rows_max = 0;
};
Result<Pairs> read_pairs(TensorFile const& file,
                         std::string (*keys_name)(std::uint32_t layer),
                         std::string (*values_name)(std::uint32_t layer));

}  // namespace dkv
