#include "cli/saved/formats/pairs.h"

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

/// Both of a layer; a message about one that is missing names the other.
Result<LayerTensors> find_pair(TensorFile const& file, std::string keys, std::string values) {
    LayerTensors found;
    found.keys = {std::move(keys), nullptr};
    found.values = {std::move(values), nullptr};
    found.keys.tensor = file.find(found.keys.name);
    found.values.tensor = file.find(found.values.name);
    if (found.keys.tensor == nullptr) return corrupt(fmt::format("{} is missing", found.keys.name));
    if (found.values.tensor == nullptr)
        return corrupt(fmt::format("there is {} and no {}", found.keys.name, found.values.name));
    return found;
}

Result<void> check_values(LayerTensors const& found) {
    FileTensor const& keys = *found.keys.tensor;
    FileTensor const& values = *found.values.tensor;
    if (values.dtype == keys.dtype && values.shape == keys.shape) return {};
    bool const mla = values.shape.size() == keys.shape.size() && keys.shape.size() > 2 &&
                     values.shape.back() != keys.shape.back();
    return corrupt(fmt::format(
        "{} is {}, not {} as {}{}", found.values.name, found.values.shape(), found.keys.shape(),
        found.keys.name, mla ? ": keys and values of different head_dim (MLA) are not read" : ""));
}

}  // namespace

Result<Pairs> read_pairs(TensorFile const& file,
                         std::uint32_t layers,
                         std::string (*keys_name)(std::uint32_t layer),
                         std::string (*values_name)(std::uint32_t layer)) {
    Pairs pairs;
    Geometry& geometry = pairs.geometry;
    geometry.layers = layers;
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
        auto found = DKV_TRY(find_pair(file, keys_name(layer), values_name(layer)));
        auto const dtype = DKV_TRY(need_cache_dtype(found.keys.name, found.keys.tensor->dtype));
        auto const keys = DKV_TRY(extents_of(found.keys));
        if (layer == 0) {
            geometry.dtype = dtype;
            geometry.kv_heads = geometry.q_heads = keys.heads;
            geometry.head_dim = keys.head_dim;
        }
        if (dtype != geometry.dtype || keys.heads != geometry.kv_heads ||
            keys.head_dim != geometry.head_dim)
            return corrupt(fmt::format("{} is {}, which does not match {}, {}", found.keys.name,
                                       found.keys.shape(), pairs.layers.front().keys.name,
                                       pairs.layers.front().keys.shape()));
        DKV_TRY(check_values(found));
        found.rows = keys.rows;
        pairs.rows_max = std::max(pairs.rows_max, keys.rows);
        pairs.layers.push_back(std::move(found));
    }
    auto const checked = check(geometry);
    if (!checked) return corrupt(checked.error().message);
    return pairs;
}

}  // namespace dkv
