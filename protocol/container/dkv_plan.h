// dkv's own layout of a saved cache in the safetensors container: which tensors there are, in which
// order, and what the metadata say. docs/FORMATS.md has it in words.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/base/geometry.h"
#include "protocol/container/quantised_rows.h"
#include "protocol/container/rope.h"
#include "protocol/container/safetensors_writer.h"

namespace dkv {

inline constexpr std::string_view kProvenancePrefix = "provenance.";
/// rope.interleaved, where the order of the dims is not known.
inline constexpr char const* kUnknownOrder = "unknown";
inline constexpr char const* kTokensTensor = "tokens";

/// Of files whose rows are numbers, and of those whose rows are quantised: dkv 0.1 reads the first.
inline constexpr char const* kDkvVersion = "1";
inline constexpr char const* kDkvVersionQuantised = "2";

/// "layers.3.keys"; parts: those of DkvPlan but for tokens.
std::string dkv_tensor(std::uint32_t layer, std::string_view part);

/// "F32", "F16", "BF16": the container's word.
std::string_view container_dtype(Dtype dtype) noexcept;

/// How one layer lies.
enum class LayerShape : std::uint8_t {
    Whole,    ///< keys [kv_heads, n_prompt, head_dim], no positions
    Uniform,  ///< positions [kv_heads, n_l], keys [kv_heads, n_l, head_dim]
    Ragged    ///< head_offsets [kv_heads + 1], positions [rows], keys [rows, head_dim]
};
/// `lengths` [kv_heads].
LayerShape layer_shape(std::span<std::uint32_t const> lengths, std::uint32_t prompt_tokens);

struct DkvContents {
    Geometry geometry;
    std::string model;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t query_rows = 0;            ///< 0: no queries.
    std::span<std::uint32_t const> lengths;  ///< [layers, kv_heads]
    bool with_tokens = false;
    std::vector<bool> with_sinks;  ///< [layers]; empty: none has any.
    bool with_scores = false;      ///< Every layer is whole then.
    /// Of keys and values; geometry.dtype is what they become when they are read.
    std::optional<QuantisedRows> quantised = {};
    std::span<std::uint32_t const> refined = {};  ///< [layers] rows, where quantised->refined.
    float scale = 0;
    float softcap = 0;
    RopeFacts rope;
    std::map<std::string, std::string> provenance;
};

/// In the order of the bytes: tokens, then for each layer head_offsets, positions, keys, values,
/// refined, keys_rest, values_rest, q_window, sink_logits and scores, as far as the file has them.
struct DkvPlan {
    std::vector<TensorPlan> tensors;
    std::map<std::string, std::string> metadata;
};
DkvPlan dkv_plan(DkvContents const& contents);

}  // namespace dkv
