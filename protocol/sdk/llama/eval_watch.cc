#include "protocol/sdk/llama/eval_watch.h"

#include <algorithm>
#include <string_view>

#include "protocol/base/elements.h"

namespace dkv::llama {
namespace {

constexpr std::string_view kQueries = "Qcur-";
constexpr std::string_view kKeys = "Kcur-";
constexpr std::string_view kRope = "ROPE";
// Of the square of a key's length. A q4_0 row is a few thousandths away from what was stored, and
// another layer's key more than its own length.
constexpr float kSameKeyMax = 0.05F;

/// The layer of a tensor of that name; `layers`: it has none.
std::uint32_t layer_of(std::string_view name, std::string_view prefix, std::size_t layers) {
    auto const none = static_cast<std::uint32_t>(layers);
    return std::min(layer_in(name, prefix).value_or(none), none);
}

bool is_same_key(std::span<float const> stored, std::span<float const> key) {
    float apart = 0;
    float length = 0;
    for (std::size_t i = 0; i < key.size(); ++i) {
        apart += (stored[i] - key[i]) * (stored[i] - key[i]);
        length += key[i] * key[i];
    }
    return apart < kSameKeyMax * length;
}

}  // namespace

void EvalWatch::set_shape(std::uint32_t layers,
                          std::uint32_t heads,
                          std::uint32_t key_heads,
                          std::uint32_t head_dim) {
    row_elements_ = std::uint64_t{heads} * head_dim;
    key_elements_ = std::uint64_t{key_heads} * head_dim;
    layers_.assign(layers, Layer{std::vector<float>(rows_max_ * row_elements_), 0,
                                 std::vector<float>(key_elements_)});
}

void EvalWatch::begin(std::uint32_t first) {
    first_ = first;
    for (Layer& layer : layers_)
        layer.seen = first;
    wrong_.clear();
    watching_ = true;
}

bool EvalWatch::wants(ggml_tensor const* tensor) const {
    if (!watching_) return false;
    char const* const name = library_.ggml_get_name(tensor);
    auto const is_of_layer = [&](std::string_view prefix) {
        return layer_of(name, prefix, layers_.size()) < layers_.size();
    };
    return (is_of_layer(kQueries) || (key_elements_ > 0 && is_of_layer(kKeys))) &&
           library_.ggml_op_desc(tensor) == kRope;
}

void EvalWatch::take(ggml_tensor const* tensor) {
    if (!wants(tensor)) return;
    char const* const name = library_.ggml_get_name(tensor);
    auto const layer = layer_of(name, kQueries, layers_.size());
    if (layer < layers_.size())
        take_queries(tensor, layer);
    else
        take_key(tensor, layer_of(name, kKeys, layers_.size()));
}

std::uint64_t EvalWatch::rows_of(ggml_tensor const* tensor, std::uint64_t row_elements) {
    auto const elements = static_cast<std::uint64_t>(library_.ggml_nelements(tensor));
    if (library_.ggml_is_contiguous(tensor) && elements % row_elements == 0 &&
        library_.ggml_nbytes(tensor) == elements * sizeof(float))
        return elements / row_elements;
    wrong_ = std::string(library_.ggml_get_name(tensor)) + " has " + std::to_string(elements) +
             " elements, not dense f32 rows of " + std::to_string(row_elements);
    return 0;
}

void EvalWatch::take_queries(ggml_tensor const* tensor, std::uint32_t index) {
    Layer& layer = layers_[index];
    std::uint64_t const rows = rows_of(tensor, row_elements_);
    std::uint64_t const row_bytes = row_elements_ * sizeof(float);
    for (std::uint64_t row = rows - std::min<std::uint64_t>(rows, rows_max_); row < rows;) {
        std::uint64_t const place = (layer.seen + row) % rows_max_;
        std::uint64_t const run = std::min(rows - row, rows_max_ - place);
        library_.ggml_backend_tensor_get(tensor, layer.rows.data() + place * row_elements_,
                                         row * row_bytes, run * row_bytes);
        row += run;
    }
    layer.seen += rows;
}

void EvalWatch::take_key(ggml_tensor const* tensor, std::uint32_t index) {
    std::uint64_t const rows = rows_of(tensor, key_elements_);
    std::uint64_t const row_bytes = key_elements_ * sizeof(float);
    if (rows > 0)
        library_.ggml_backend_tensor_get(tensor, layers_[index].key.data(), (rows - 1) * row_bytes,
                                         row_bytes);
}

Result<std::vector<std::uint32_t>> EvalWatch::layers_of(std::span<float const> keys) const {
    std::vector<std::uint32_t> found;
    for (; !keys.empty(); keys = keys.subspan(key_elements_)) {
        std::vector<std::uint32_t> same;
        for (std::uint32_t layer = 0; layer < layers_.size(); ++layer)
            if (is_same_key(keys.first(key_elements_), layers_[layer].key)) same.push_back(layer);
        if (same.size() != 1)
            return Error{ErrorCode::Unsupported, "full layer " + std::to_string(found.size()) +
                                                     " of the state has the " + "last key of " +
                                                     std::to_string(same.size()) +
                                                     " of the model's layers, not of one"};
        found.push_back(same.front());
    }
    return found;
}

Result<void> EvalWatch::check_seen(std::uint32_t tokens) const {
    if (!wrong_.empty()) return Error{ErrorCode::BadState, wrong_};
    for (std::size_t index = 0; index < layers_.size(); ++index)
        if (layers_[index].seen != tokens)
            return Error{
                ErrorCode::BadState,
                "layer " + std::to_string(index) + " showed queries of " +
                    std::to_string(layers_[index].seen - first_) + " tokens, the sequence has " +
                    std::to_string(tokens - first_) +
                    " since begin: begin before the prompt's first token, and decode all of it in "
                    "this context"};
    return {};
}

void EvalWatch::copy_last(std::uint32_t index,
                          std::uint32_t rows,
                          Dtype dtype,
                          std::byte* target) const {
    Layer const& layer = layers_[index];
    for (std::uint64_t row = layer.seen - rows; row < layer.seen; ++row) {
        float const* const source = layer.rows.data() + row % rows_max_ * row_elements_;
        for (std::uint64_t i = 0; i < row_elements_; ++i, target += bytes_of(dtype))
            store_f32(target, dtype, source[i]);
    }
}

}  // namespace dkv::llama
