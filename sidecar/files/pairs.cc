#include "sidecar/files/pairs.h"

#include <algorithm>

#include <fmt/format.h>

namespace dkv {
namespace {

struct Extents {
    std::uint32_t heads = 0;
    std::uint32_t rows = 0;
    std::uint32_t head_dim = 0;
};

Result<Extents> extents_of(NamedTensor const& tensor) {
    auto shape = tensor.tensor->shape;
    if (shape.size() == 4) {
        if (shape.front() != 1)
            return unsupported(fmt::format("{} is {}: {} sequences, where one is read", tensor.name,
                                           tensor.shape(), shape.front()));
        shape.erase(shape.begin());
    }
    bool const fits = shape.size() == 3 && std::ranges::all_of(shape, [](std::uint64_t extent) {
                          return extent > 0 && extent <= kExtentMax;
                      });
    if (!fits)
        return corrupt(
            fmt::format("{} is {}, not [heads, tokens, head_dim]", tensor.name, tensor.shape()));
    return Extents{static_cast<std::uint32_t>(shape[0]), static_cast<std::uint32_t>(shape[1]),
                   static_cast<std::uint32_t>(shape[2])};
}

}  // namespace

Result<Pairs> read_pairs(TensorFile const& file,
                         std::string (*keys_name)(std::uint32_t layer),
                         std::string (*values_name)(std::uint32_t layer)) {
    Pairs pairs;
    Geometry& geometry = pairs.geometry;
    while (file.find(keys_name(geometry.layers)) != nullptr)
        ++geometry.layers;
    if (geometry.layers == 0) return corrupt("there is no " + keys_name(0));
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        LayerTensors found;
        found.keys = {keys_name(layer), DKV_TRY(file.need(keys_name(layer)))};
        found.values = {values_name(layer), DKV_TRY(file.need(values_name(layer)))};
        auto const dtype = cache_dtype(found.keys.tensor->dtype);
        if (!dtype)
            return corrupt(fmt::format("{} is {}, not F32, F16 or BF16", found.keys.name,
                                       found.keys.tensor->dtype));
        auto const keys = DKV_TRY(extents_of(found.keys));
        if (layer == 0) {
            geometry.dtype = *dtype;
            geometry.kv_heads = geometry.q_heads = keys.heads;
            geometry.head_dim = keys.head_dim;
        }
        if (*dtype != geometry.dtype || keys.heads != geometry.kv_heads ||
            keys.head_dim != geometry.head_dim)
            return corrupt(fmt::format("{} is {}, which goes not with {}, {}", found.keys.name,
                                       found.keys.shape(), pairs.layers.front().keys.name,
                                       pairs.layers.front().keys.shape()));
        if (found.values.tensor->dtype != found.keys.tensor->dtype ||
            found.values.tensor->shape != found.keys.tensor->shape)
            return corrupt(fmt::format("{} is {}, not {} as {}", found.values.name,
                                       found.values.shape(), found.keys.shape(), found.keys.name));
        found.rows = keys.rows;
        pairs.rows_max = std::max(pairs.rows_max, keys.rows);
        pairs.layers.push_back(std::move(found));
    }
    auto const checked = check(geometry);
    if (!checked) return corrupt(checked.error().message);
    return pairs;
}

}  // namespace dkv
