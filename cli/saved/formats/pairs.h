// Files that have a tensor of keys and one of values per layer, [(1,) heads, rows, head_dim].
#pragma once

#include "cli/saved/formats/tensor_cache.h"

namespace dkv {

struct Pairs {
    Geometry geometry;
    std::vector<LayerTensors> layers;
    std::uint32_t rows_max = 0;
};

/// Fills geometry and `layers` layers from the tensors that the two name; rows may differ between
/// layers.
///
/// Errors: CorruptData, naming the tensor, for one that is missing, and unless all are of one shape
/// but for the rows; Unsupported for more than one sequence and for other dtypes.
Result<Pairs> read_pairs(TensorFile const& file,
                         std::uint32_t layers,
                         std::string (*keys_name)(std::uint32_t layer),
                         std::string (*values_name)(std::uint32_t layer));

}  // namespace dkv
