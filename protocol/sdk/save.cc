// dkv_save: an engine's rows as a file of dkv's own layout.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "protocol/base/sink_logits.h"
#include "protocol/container/dkv_plan.h"
#include "protocol/container/safetensors_writer.h"
#include "protocol/sdk/abi.h"

namespace dkv::sdk {
namespace {

constexpr std::uint32_t kTokensMax = INT32_MAX;
constexpr std::size_t kProvenanceMax = 1000;

/// What the call says, read once and checked.
class SaveCall {
public:
    static Result<SaveCall> read(dkv_save_options const* options, dkv_save_layer const* layers) {
        DKV_TRY(check_struct("options", options));
        SaveCall call(*options);
        call.geometry_ = DKV_TRY(geometry_of(options->geometry));
        DKV_TRY(call.read_options());
        DKV_TRY(call.read_layers(layers));
        return call;
    }

    DkvPlan plan() const {
        return dkv_plan({.geometry = geometry_,
                         .model = options_.model == nullptr ? "" : options_.model,
                         .prompt_tokens = options_.prompt_tokens,
                         .query_rows = options_.query_rows,
                         .lengths = lengths_,
                         .with_tokens = options_.tokens != nullptr,
                         .with_sinks = with_sinks_,
                         .with_scores = layers_.front().scores != nullptr,
                         .scale = options_.scale,
                         .softcap = options_.softcap,
                         .rope = rope_,
                         .provenance = provenance_});
    }

    Result<void> write(SafetensorsWriter& writer) const {
        if (options_.tokens != nullptr)
            DKV_TRY(
                writer.append(std::as_bytes(std::span(options_.tokens, options_.prompt_tokens))));
        for (std::uint32_t layer = 0; layer < geometry_.layers; ++layer)
            DKV_TRY(write_layer(writer, layer));
        return {};
    }

private:
    explicit SaveCall(dkv_save_options const& options) : options_(options) {}

    Result<void> read_options() {
        if (options_.prompt_tokens == 0 || options_.prompt_tokens > kTokensMax)
            return invalid("options->prompt_tokens is " + std::to_string(options_.prompt_tokens));
        if (options_.query_rows > options_.prompt_tokens)
            return invalid("options->query_rows is " + std::to_string(options_.query_rows) +
                           ", of " + std::to_string(options_.prompt_tokens) + " tokens");
        for (double const number :
             {double{options_.scale}, double{options_.softcap}, options_.rope_theta})
            if (!(number >= 0 && number <= 1e30))  // NaN fails both.
                return invalid("options->scale, softcap or rope_theta is " +
                               std::to_string(number));
        rope_ = {.theta = options_.rope_theta,
                 .interleaved = options_.rope_interleaved != 0,
                 .model_interleaved = options_.rope_interleaved == 2,
                 .dims = options_.rope_dims,
                 .scaling = options_.rope_scaling == nullptr ? "" : options_.rope_scaling};
        if (options_.provenance == nullptr) return {};
        for (char const* const* entry = options_.provenance; *entry != nullptr; entry += 2) {
            if (entry[1] == nullptr)
                return invalid(std::string("options->provenance has no value for ") + *entry);
            provenance_[*entry] = entry[1];
            if (provenance_.size() > kProvenanceMax)
                return invalid("options->provenance does not end");
        }
        return {};
    }

    Result<void> read_layers(dkv_save_layer const* first) {
        if (first == nullptr) return null_pointer("layers");
        auto const* at = reinterpret_cast<std::byte const*>(first);
        for (std::uint32_t index = 0; index < geometry_.layers; ++index) {
            auto const& layer = *reinterpret_cast<dkv_save_layer const*>(at);
            layers_.push_back(
                DKV_TRY(whole("layer", layer, offsetof(dkv_save_layer, sink_logits), {})));
            if (layer.struct_bytes != first->struct_bytes)
                return invalid("layers are of different struct_bytes");
            DKV_TRY(read_layer(index, layers_.back()));
            DKV_TRY(check_scores(index, layers_.back()));
            at += first->struct_bytes;
        }
        return {};
    }

    Result<void> read_layer(std::uint32_t index, dkv_save_layer const& layer) {
        std::string const name = "layers[" + std::to_string(index) + "]";
        std::size_t const begin = lengths_.size();
        for (std::uint32_t head = 0; head < geometry_.kv_heads; ++head)
            lengths_.push_back(layer.lengths == nullptr ? options_.prompt_tokens
                                                        : layer.lengths[head]);
        auto const lengths = std::span(lengths_).subspan(begin);
        std::uint64_t rows = 0;
        bool whole = true;
        for (std::uint32_t const length : lengths) {
            if (length > options_.prompt_tokens)
                return invalid(name + ".lengths has " + std::to_string(length) + ", of " +
                               std::to_string(options_.prompt_tokens) + " tokens");
            whole = whole && length == options_.prompt_tokens;
            rows += length;
        }
        if (rows > kTokensMax) return invalid(name + " has " + std::to_string(rows) + " rows");
        if (rows > 0 && layer.keys.data == nullptr) return null_pointer((name + ".keys").c_str());
        if (rows > 0 && layer.values.data == nullptr)
            return null_pointer((name + ".values").c_str());
        if (options_.query_rows > 0 && layer.queries.data == nullptr)
            return null_pointer((name + ".queries").c_str());
        auto const sinks = sinks_of(layer);
        with_sinks_.push_back(!sinks.empty());
        if (auto const checked = check_sink_logits(sinks, geometry_.q_heads); !checked)
            return invalid(name + "." + checked.error().message);
        if (layer.positions != nullptr) return check_positions(name, layer.positions, lengths);
        return whole ? Result<void>() : invalid(name + " is compacted and has no positions");
    }

    Result<void> check_scores(std::uint32_t index, dkv_save_layer const& layer) const {
        std::string const name = "layers[" + std::to_string(index) + "].scores";
        if ((layer.scores == nullptr) != (layers_.front().scores == nullptr))
            return invalid(name + " and layers[0].scores: one is NULL and the other is not");
        auto const scores = scores_of(layer);
        auto const wrong =
            std::ranges::find_if_not(scores, [](float x) { return std::isfinite(x); });
        if (wrong != scores.end())
            return invalid(name + "[" + std::to_string(wrong - scores.begin()) + "] is not finite");
        auto const whole = [&](std::uint32_t rows) { return rows == options_.prompt_tokens; };
        if (!scores.empty() && !std::ranges::all_of(lengths_, whole))
            return invalid(name + " are of every token, and some tokens' rows are missing");
        return {};
    }

    Result<void> check_positions(std::string const& name,
                                 std::int32_t const* positions,
                                 std::span<std::uint32_t const> lengths) const {
        for (std::uint32_t const length : lengths) {
            std::int64_t before = -1;
            for (std::uint32_t row = 0; row < length; ++row, ++positions) {
                if (*positions <= before || std::int64_t{*positions} >= options_.prompt_tokens)
                    return invalid(name + ".positions has " + std::to_string(*positions) +
                                   " after " + std::to_string(before) + ", of " +
                                   std::to_string(options_.prompt_tokens) + " tokens");
                before = *positions;
            }
        }
        return {};
    }

    std::span<float const> sinks_of(dkv_save_layer const& layer) const {
        if (layer.sink_logits == nullptr) return {};
        return {layer.sink_logits, geometry_.q_heads};
    }

    std::span<float const> scores_of(dkv_save_layer const& layer) const {
        if (layer.scores == nullptr) return {};
        return {layer.scores, std::size_t{geometry_.kv_heads} * options_.prompt_tokens};
    }

    Result<void> write_layer(SafetensorsWriter& writer, std::uint32_t index) const {
        dkv_save_layer const& layer = layers_[index];
        auto const lengths = std::span(lengths_).subspan(std::size_t{index} * geometry_.kv_heads,
                                                         geometry_.kv_heads);
        auto const shape = layer_shape(lengths, options_.prompt_tokens);
        std::vector<std::int32_t> offsets{0};
        for (std::uint32_t const length : lengths)
            offsets.push_back(offsets.back() + static_cast<std::int32_t>(length));
        if (shape == LayerShape::Ragged) DKV_TRY(writer.append(std::as_bytes(std::span(offsets))));
        if (shape != LayerShape::Whole)
            DKV_TRY(writer.append(std::as_bytes(
                std::span(layer.positions, static_cast<std::size_t>(offsets.back())))));
        DKV_TRY(write_rows(writer, layer.keys, lengths));
        DKV_TRY(write_rows(writer, layer.values, lengths));
        std::vector<std::uint32_t> const queries(geometry_.q_heads, options_.query_rows);
        if (options_.query_rows > 0) DKV_TRY(write_rows(writer, layer.queries, queries));
        DKV_TRY(writer.append(std::as_bytes(sinks_of(layer))));
        return writer.append(std::as_bytes(scores_of(layer)));
    }

    Result<void> write_rows(SafetensorsWriter& writer,
                            dkv_save_rows const& rows,
                            std::span<std::uint32_t const> lengths) const {
        std::size_t const element = bytes_of(geometry_.dtype);
        std::size_t const row_bytes = geometry_.row_bytes();
        std::vector<std::byte> packed(rows.dim_stride == 1 ? 0 : row_bytes);
        for (std::size_t head = 0; head < lengths.size(); ++head) {
            if (lengths[head] == 0) continue;  // Its data may be NULL.
            auto const* row = static_cast<std::byte const*>(rows.data) +
                              (rows.head_offset == nullptr ? head * rows.head_stride * element
                                                           : rows.head_offset[head]);
            if (rows.dim_stride == 1 && rows.token_stride == geometry_.head_dim) {
                DKV_TRY(writer.append({row, lengths[head] * row_bytes}));
                continue;
            }
            for (std::uint32_t token = 0; token < lengths[head]; ++token) {
                for (std::size_t dim = 0; dim * element < packed.size(); ++dim)
                    std::memcpy(packed.data() + dim * element,
                                row + dim * rows.dim_stride * element, element);
                DKV_TRY(writer.append(packed.empty() ? std::span(row, row_bytes)
                                                     : std::span<std::byte const>(packed)));
                row += rows.token_stride * element;
            }
        }
        return {};
    }

    dkv_save_options const& options_;
    Geometry geometry_;
    RopeFacts rope_;
    std::map<std::string, std::string> provenance_;
    std::vector<dkv_save_layer> layers_;
    std::vector<std::uint32_t> lengths_;  // [layers, kv_heads]
    std::vector<bool> with_sinks_;        // [layers]
};

}  // namespace
}  // namespace dkv::sdk

dkv_status dkv_save(char const* path,
                    dkv_save_options const* options,
                    dkv_save_layer const* layers,
                    uint64_t* file_bytes) {
    return dkv::sdk::guarded([&]() -> dkv::Result<void> {
        if (path == nullptr) return dkv::sdk::null_pointer("path");
        auto const call = DKV_TRY(dkv::sdk::SaveCall::read(options, layers));
        auto plan = call.plan();
        auto writer = DKV_TRY(dkv::SafetensorsWriter::create(path, std::move(plan.tensors),
                                                             std::move(plan.metadata)));
        DKV_TRY(call.write(writer));
        DKV_TRY(writer.commit());
        if (file_bytes != nullptr) *file_bytes = writer.file_bytes();
        return {};
    });
}
