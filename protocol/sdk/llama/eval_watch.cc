#include "protocol/sdk/llama/eval_watch.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "protocol/base/elements.h"

namespace dkv::llama {
namespace {

constexpr std::string_view kQueries = "Qcur-";
constexpr std::string_view kRope = "ROPE";

std::optional<std::uint32_t> layer_of(std::string_view name) {
    if (!name.starts_with(kQueries)) return std::nullopt;
    name.remove_prefix(kQueries.size());
    std::uint32_t layer = 0;
    auto const* const end = name.data() + name.size();
    auto const [rest, error] = std::from_chars(name.data(), end, layer);
    return error == std::errc() && rest == end ? std::optional(layer) : std::nullopt;
}

}  // namespace

void EvalWatch::set_shape(std::uint32_t layers, std::uint32_t heads, std::uint32_t head_dim) {
    row_elements_ = std::uint64_t{heads} * head_dim;
    layers_.assign(layers, Layer{std::vector<float>(rows_max_ * row_elements_), 0});
}

void EvalWatch::begin() {
    for (Layer& layer : layers_)
        layer.seen = 0;
    wrong_.clear();
    watching_ = true;
}

bool EvalWatch::wants(ggml_tensor const* tensor) const {
    if (!watching_) return false;
    auto const layer = layer_of(library_.ggml_get_name(tensor));
    return layer && *layer < layers_.size() && library_.ggml_op_desc(tensor) == kRope;
}

void EvalWatch::take(ggml_tensor const* tensor) {
    if (!wants(tensor)) return;
    auto const index = *layer_of(library_.ggml_get_name(tensor));
    auto const elements = static_cast<std::uint64_t>(library_.ggml_nelements(tensor));
    if (!library_.ggml_is_contiguous(tensor) || elements % row_elements_ != 0 ||
        library_.ggml_nbytes(tensor) != elements * sizeof(float)) {
        wrong_ = "the queries of layer " + std::to_string(index) + " are " +
                 std::to_string(elements) + " elements, not dense f32 rows of " +
                 std::to_string(row_elements_);
        return;
    }
    Layer& layer = layers_[index];
    std::uint64_t const rows = elements / row_elements_;
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

Result<void> EvalWatch::check_seen(std::uint32_t tokens) const {
    if (!wrong_.empty()) return Error{ErrorCode::BadState, wrong_};
    for (std::size_t index = 0; index < layers_.size(); ++index)
        if (layers_[index].seen != tokens)
            return Error{ErrorCode::BadState,
                         "layer " + std::to_string(index) + " showed queries of " +
                             std::to_string(layers_[index].seen) + " tokens, the sequence has " +
                             std::to_string(tokens) +
                             ": begin before the prompt's first token, and decode all of it in "
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
