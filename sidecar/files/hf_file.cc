#include "sidecar/files/hf_file.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "sidecar/files/pairs.h"

namespace dkv {
namespace {

std::string hf_keys_name(std::uint32_t layer) {
    return fmt::format("k_{}", layer);
}
std::string hf_values_name(std::uint32_t layer) {
    return fmt::format("v_{}", layer);
}

/// Messages do not name the path yet.
class HfReader {
public:
    explicit HfReader(TensorFile const& file) : file_(file) {}

    Result<void> read() {
        auto pairs = DKV_TRY(read_pairs(file_, hf_keys_name, hf_values_name));
        layers = std::move(pairs.layers);
        facts.format = FileFormat::Hf;
        facts.format_words = "HF export";
        facts.geometry = pairs.geometry;
        facts.prompt_tokens = pairs.rows_max;
        facts.model = metadata_text(file_.table.metadata, "model");
        facts.rope = DKV_TRY(metadata_rope(file_.table.metadata));
        DKV_TRY(read_prompt(pairs.rows_max));
        std::size_t places = 2 * layers.size();
        for (LayerTensors& layer : layers) {
            DKV_TRY(read_positions(layer));
            places += layer.positions.tensor == nullptr ? 0 : 1;
        }
        return check_places(places);
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
            return corrupt(fmt::format("{} has {} of {} tokens, and there is no {}",
                                       layer.keys.name, layer.rows, facts.prompt_tokens, name));
        }
        std::vector<std::uint64_t> const shape{facts.geometry.kv_heads, layer.rows};
        if (layer.positions.tensor->dtype == "I32" && layer.positions.tensor->shape == shape)
            return {};
        return corrupt(fmt::format("{} is {}, not I32 [{}]", name, layer.positions.shape(),
                                   fmt::join(shape, ", ")));
    }

    /// A layer behind a gap would be lost without a word; tensors of other names are the user's.
    Result<void> check_places(std::size_t places) const {
        auto const is_ours = [](auto const& entry) {
            std::string_view const name = entry.first;
            return name.starts_with("k_") || name.starts_with("v_") ||
                   name.starts_with("positions_");
        };
        auto const count =
            static_cast<std::size_t>(std::ranges::count_if(file_.table.tensors, is_ours));
        if (count == places) return {};
        return corrupt(fmt::format("{} tensors k_, v_ or positions_ belong to none of {} layers",
                                   count - places, layers.size()));
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
