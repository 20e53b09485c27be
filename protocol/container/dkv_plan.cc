#include "protocol/container/dkv_plan.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace dkv {
namespace {

std::map<std::string, std::string> metadata_of(DkvContents const& contents) {
    std::map<std::string, std::string> metadata{
        {"format", "dkv"},
        {"version", contents.quantised ? kDkvVersionQuantised : kDkvVersion},
        {"model", contents.model},
        {"n_prompt", std::to_string(contents.prompt_tokens)}};
    if (contents.scale != 0) metadata["scale"] = fmt::format("{}", contents.scale);
    if (contents.softcap != 0) metadata["softcap"] = fmt::format("{}", contents.softcap);
    auto const& rope = contents.rope;
    if (rope.theta != 0) metadata["rope.theta"] = fmt::format("{}", rope.theta);
    if (!rope.order_known)
        metadata["rope.interleaved"] = kUnknownOrder;
    else if (rope.theta != 0 || rope.interleaved)
        metadata["rope.interleaved"] = rope.interleaved ? "true" : "false";
    if (rope.model_interleaved) metadata["rope.model_interleaved"] = "true";
    if (rope.dims != 0) metadata["rope.dims"] = std::to_string(rope.dims);
    if (!rope.scaling.empty()) metadata["rope.scaling"] = rope.scaling;
    if (contents.quantised) {
        metadata["rows"] = contents.quantised->name();
        metadata["rows.rotation"] = std::to_string(contents.quantised->rotation);
        metadata["rows.dtype"] = container_dtype(contents.geometry.dtype);
    }
    for (auto const& [key, value] : contents.provenance)
        metadata[std::string(kProvenancePrefix) + key] = value;
    return metadata;
}

void plan_layer(DkvContents const& contents,
                std::uint32_t layer,
                std::vector<TensorPlan>& tensors) {
    Geometry const& geometry = contents.geometry;
    std::uint64_t const heads = geometry.kv_heads;
    auto const lengths = contents.lengths.subspan(layer * heads, heads);
    auto const add = [&](char const* part, std::string_view dtype,
                         std::vector<std::uint64_t> shape) {
        tensors.push_back({dkv_tensor(layer, part), std::string(dtype), std::move(shape)});
    };
    auto const dtype = container_dtype(geometry.dtype);
    auto const& quantised = contents.quantised;
    auto const row_dtype = quantised ? std::string_view("U8") : dtype;
    std::uint64_t const row = quantised ? quantised->row_bytes() : geometry.head_dim;
    LayerShape const shape = layer_shape(lengths, contents.prompt_tokens);
    if (shape == LayerShape::Ragged) {
        auto const rows = std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
        add("head_offsets", "I32", {heads + 1});
        add("positions", "I32", {rows});
        add("keys", row_dtype, {rows, row});
        add("values", row_dtype, {rows, row});
    } else {
        if (shape == LayerShape::Uniform) add("positions", "I32", {heads, lengths[0]});
        add("keys", row_dtype, {heads, lengths[0], row});
        add("values", row_dtype, {heads, lengths[0], row});
    }
    if (quantised && quantised->refined) {
        std::uint64_t const refined = contents.refined[layer];
        add("refined", "I32", {refined});
        add("keys_rest", "U8", {refined, row});
        add("values_rest", "U8", {refined, row});
    }
    if (contents.query_rows > 0)
        add("q_window", dtype, {geometry.q_heads, contents.query_rows, geometry.head_dim});
    if (!contents.with_sinks.empty() && contents.with_sinks[layer])
        add("sink_logits", "F32", {geometry.q_heads});
    if (contents.with_scores) add("scores", "F32", {heads, contents.prompt_tokens});
}

}  // namespace

std::string dkv_tensor(std::uint32_t layer, std::string_view part) {
    return fmt::format("layers.{}.{}", layer, part);
}

std::string_view container_dtype(Dtype dtype) noexcept {
    switch (dtype) {
        case Dtype::F32: return "F32";
        case Dtype::F16: return "F16";
        case Dtype::Bf16: return "BF16";
    }
    return "unknown";
}

LayerShape layer_shape(std::span<std::uint32_t const> lengths, std::uint32_t prompt_tokens) {
    DKV_ASSERT(!lengths.empty());
    bool const uniform = std::ranges::all_of(
        lengths, [&](std::uint32_t length) { return length == lengths.front(); });
    if (!uniform) return LayerShape::Ragged;
    return lengths.front() == prompt_tokens ? LayerShape::Whole : LayerShape::Uniform;
}

DkvPlan dkv_plan(DkvContents const& contents) {
    DKV_ASSERT(contents.lengths.size() ==
               std::size_t{contents.geometry.layers} * contents.geometry.kv_heads);
    DKV_ASSERT(!contents.quantised || !contents.quantised->refined ||
               contents.refined.size() == contents.geometry.layers);
    DkvPlan plan{.tensors = {}, .metadata = metadata_of(contents)};
    if (contents.with_tokens)
        plan.tensors.push_back({kTokensTensor, "I32", {contents.prompt_tokens}});
    for (std::uint32_t layer = 0; layer < contents.geometry.layers; ++layer)
        plan_layer(contents, layer, plan.tensors);
    return plan;
}

}  // namespace dkv
