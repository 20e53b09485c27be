#include "cli/saved/formats/hf_file.h"

#include <limits>

#include <fmt/format.h>

#include "cli/saved/formats/layer_count.h"
#include "cli/saved/formats/pairs.h"

namespace dkv {
namespace {

std::string hf_keys_name(std::uint32_t layer) {
    return fmt::format("k_{}", layer);
}
std::string hf_values_name(std::uint32_t layer) {
    return fmt::format("v_{}", layer);
}

/// "k_12", "v_12", "positions_12": 12.
std::optional<std::uint64_t> hf_layer(std::string_view name) {
    for (std::string_view const prefix : {"k_", "v_", "positions_"})
        if (name.starts_with(prefix)) return plain_number(name.substr(prefix.size()));
    return std::nullopt;
}

/// Messages do not name the path yet.
class HfReader {
public:
    explicit HfReader(TensorFile const& file) : file_(file) {}

    Result<void> read() {
        auto const count = DKV_TRY(count_layers(file_.table, hf_layer));
        auto pairs = DKV_TRY(read_pairs(file_, count, hf_keys_name, hf_values_name));
        layers = std::move(pairs.layers);
        facts.format = FileFormat::Hf;
        facts.format_words = "HF export";
        facts.geometry = pairs.geometry;
        facts.prompt_tokens = pairs.rows_max;
        facts.model = metadata_text(file_.table.metadata, "model");
        facts.rope = DKV_TRY(metadata_rope(file_.table.metadata));
        DKV_TRY(read_prompt(pairs.rows_max));
        for (LayerTensors& layer : layers)
            DKV_TRY(read_positions(layer));
        return check_places();
    }

    CacheFacts facts;
    std::vector<LayerTensors> layers;

private:
    Result<void> read_prompt(std::uint32_t rows_max) {
        auto const said = metadata_text(file_.table.metadata, "n_prompt");
        if (said.empty()) return {};
        auto const tokens = number_of<std::uint32_t>(said);
        if (!tokens || *tokens < rows_max || *tokens > std::numeric_limits<std::int32_t>::max())
            return corrupt(fmt::format("the metadata's n_prompt is {}, where a layer has {} rows",
                                       shown(said), rows_max));
        facts.prompt_tokens = *tokens;
        return {};
    }

    Result<void> read_positions(LayerTensors& layer) {
        auto const name = "positions_" + layer.keys.name.substr(2);
        layer.positions = {name, file_.find(name)};
        if (layer.positions.tensor == nullptr) {
            if (layer.rows == facts.prompt_tokens) return {};
            return corrupt(fmt::format("{} has {} of {} tokens, but {} is missing", layer.keys.name,
                                       layer.rows, facts.prompt_tokens, name));
        }
        std::vector<std::uint64_t> const shape{facts.geometry.kv_heads, layer.rows};
        if (layer.positions.tensor->dtype == "I32" && layer.positions.tensor->shape == shape)
            return {};
        return corrupt(fmt::format("{} is {}, not I32 [{}]", name, layer.positions.shape(),
                                   fmt::join(shape, ", ")));
    }

    /// Tensors of other names are the user's; one that is almost a layer's may be a layer lost.
    Result<void> check_places() const {
        for (auto const& [name, tensor] : file_.table.tensors) {
            bool const ours =
                name.starts_with("k_") || name.starts_with("v_") || name.starts_with("positions_");
            if (ours && !hf_layer(name))
                return corrupt(
                    fmt::format("the tensor {} is of no layer: layers are k_0, v_0, "
                                "k_1, v_1 …",
                                shown(name)));
        }
        return {};
    }

    TensorFile const& file_;
};

}  // namespace

Result<std::unique_ptr<SavedCache>> open_hf_file(TensorFile file, OpenOptions const& options) {
    HfReader reader(file);
    if (auto const read = reader.read(); !read) return located(file.path, read.error());
    apply_options(options, reader.facts);
    auto facts = std::move(reader.facts);
    auto layers = std::move(reader.layers);
    return std::unique_ptr<SavedCache>(
        std::make_unique<TensorCache>(std::move(file), std::move(facts), std::move(layers)));
}

}  // namespace dkv
