#include "cli/saved/formats/mlx_file.h"

#include <algorithm>
#include <cstring>
#include <set>

#include <fmt/format.h>

#include "cli/saved/formats/layer_count.h"
#include "cli/saved/formats/pairs.h"

namespace dkv {
namespace {

std::string mlx_keys_name(std::uint32_t layer) {
    return fmt::format("{}.0", layer);
}
std::string mlx_values_name(std::uint32_t layer) {
    return fmt::format("{}.1", layer);
}
std::string mlx_count_name(std::uint32_t layer) {
    return fmt::format("{}.2", layer);
}

/// "12.0", "12.0.1": 12.
std::optional<std::uint64_t> mlx_layer(std::string_view name) {
    return plain_number(name.substr(0, name.find('.')));
}

/// Why a layer of this class is not a list of tokens with a key and a value each.
std::string_view reason_for(std::string_view cls) {
    if (cls.find("Rotating") != std::string_view::npos)
        return ", which keeps a window of the prompt alone: make it without --max-kv-size";
    if (cls.find("Quantized") != std::string_view::npos)
        return ", which is quantised: save the cache without --kv-bits";
    if (cls.find("Chunked") != std::string_view::npos)
        return ", which keeps the last chunk of the prompt alone";
    if (cls.find("Mamba") != std::string_view::npos || cls.find("Arrays") != std::string_view::npos)
        return ", which has a state and not a row for each token";
    if (cls.find("Batch") != std::string_view::npos)
        return ", which holds several prompts: extract() one of them";
    if (cls == "CacheList") return ", which is several caches in one";
    return "";
}

/// Messages do not name the path yet.
class MlxReader {
public:
    explicit MlxReader(TensorFile const& file) : file_(file), metadata_(file.table.metadata) {
        // The older have a class there.
        auto const first = metadata_.find("2.0");
        counted_ = first != metadata_.end() ? first->second.empty() : metadata_.contains("1.0");
    }

    Result<void> read() {
        auto const layers = DKV_TRY(check_classes());
        if (counted_) DKV_TRY(check_states());
        DKV_TRY(check_places(layers));
        pairs = DKV_TRY(read_pairs(file_, layers, mlx_keys_name, mlx_values_name));
        if (counted_) DKV_TRY(read_counts());
        DKV_TRY(check_lengths());
        describe();
        return {};
    }

    Pairs pairs;
    CacheFacts facts;

private:
    std::string user_prefix() const { return counted_ ? "0." : "1."; }

    /// Every layer is a plain KVCache. Returns how many there are.
    Result<std::uint32_t> check_classes() const {
        std::string const prefix = counted_ ? "1." : "2.";
        std::set<std::uint64_t> named;
        for (auto const& [key, value] : metadata_) {
            if (!key.starts_with(prefix)) continue;
            auto const layer = plain_number(std::string_view(key).substr(prefix.size()));
            if (!layer) return corrupt(fmt::format("the metadata's {} is of no layer", shown(key)));
            named.insert(*layer);
            if (value != "KVCache")
                return unsupported(fmt::format("layer {} is a {}{}: only KVCache is read", *layer,
                                               shown(value), reason_for(value)));
        }
        if (named.empty()) return corrupt("the metadata names no layer's class");
        auto const layers = DKV_TRY(count_layers(named));
        auto const stored = DKV_TRY(count_layers(file_.table, mlx_layer));
        if (stored == layers) return layers;
        return corrupt(fmt::format("the metadata names {} layers, and there are tensors of {}",
                                   layers, stored));
    }

    /// "2.{i}.0" names a tensor, and "2.{i}.1" says what it stands for.
    Result<void> check_states() const {
        for (auto const& [key, value] : metadata_) {
            if (!key.starts_with("2.") || !key.ends_with(".1")) continue;
            auto const name = metadata_text(metadata_, key.substr(0, key.size() - 1) + "0");
            bool const count = name.ends_with(".2");
            if (!count && value == "none")
                return corrupt(
                    fmt::format("layer {} has no tokens", name.substr(0, name.find('.'))));
            if (!count || value != "scalar")
                return unsupported(
                    fmt::format("{} stands for a {}, where \"scalar\" of a {{l}}.2 is "
                                "expected",
                                shown(name), shown(value)));
        }
        return {};
    }

    Result<void> check_places(std::uint32_t layers) const {
        std::size_t const wanted = std::size_t{layers} * (counted_ ? 3 : 2);
        for (auto const& [name, tensor] : file_.table.tensors) {
            auto const layer = mlx_layer(name);
            bool const ours =
                layer && *layer < layers &&
                (name == mlx_keys_name(static_cast<std::uint32_t>(*layer)) ||
                 name == mlx_values_name(static_cast<std::uint32_t>(*layer)) ||
                 (counted_ && name == mlx_count_name(static_cast<std::uint32_t>(*layer))));
            if (!ours)
                return corrupt(fmt::format("the tensor {} is none of a KVCache's, in {} layers",
                                           shown(name), layers));
        }
        if (counted_ && file_.table.tensors.size() != wanted)
            for (std::uint32_t layer = 0; layer < layers; ++layer)
                DKV_TRY(file_.need(mlx_count_name(layer)));
        return {};
    }

    Result<void> read_counts() {
        pairs.rows_max = 0;
        for (std::uint32_t layer = 0; layer < pairs.geometry.layers; ++layer) {
            NamedTensor const tensor{mlx_count_name(layer),
                                     DKV_TRY(file_.need(mlx_count_name(layer)))};
            LayerTensors& found = pairs.layers[layer];
            auto const count = DKV_TRY(count_in(tensor));
            if (count == 0) return corrupt(fmt::format("layer {} has no tokens", layer));
            if (count < 0 || count > std::int64_t{found.rows})
                return corrupt(fmt::format("{} says {} tokens, and {} is {}", tensor.name, count,
                                           found.keys.name, found.keys.shape()));
            found.room = found.rows;
            found.rows = static_cast<std::uint32_t>(count);
            pairs.rows_max = std::max(pairs.rows_max, found.rows);
        }
        return {};
    }

    static Result<std::int64_t> count_in(NamedTensor const& tensor) {
        auto const& found = *tensor.tensor;
        bool const wide = found.dtype == "I64";
        if (!found.shape.empty() || (!wide && found.dtype != "I32"))
            return corrupt(fmt::format("{} is {}, not I32 []", tensor.name, tensor.shape()));
        std::int64_t value = 0;
        std::int32_t narrow = 0;
        if (wide)
            std::memcpy(&value, found.bytes.data(), sizeof value);
        else
            std::memcpy(&narrow, found.bytes.data(), sizeof narrow);
        return wide ? value : std::int64_t{narrow};
    }

    /// Layers of different lengths are what dkv makes of a cache, and nothing that mlx-lm would.
    Result<void> check_lengths() const {
        if (metadata_.contains(user_prefix() + "dkv_n_prompt")) return {};
        std::uint32_t const first = pairs.layers.front().rows;
        for (std::uint32_t layer = 0; layer < pairs.geometry.layers; ++layer)
            if (auto const rows = pairs.layers[layer].rows; rows != first)
                return corrupt(
                    fmt::format("layer {} has {} tokens, and layer 0 has {}", layer, rows, first));
        return {};
    }

    void describe() {
        facts.format = counted_ ? FileFormat::MlxLm : FileFormat::MlxLm031;
        facts.format_words =
            counted_ ? "mlx-lm prompt cache (0.32 and later)" : "mlx-lm prompt cache (before 0.32)";
        facts.geometry = pairs.geometry;
        facts.prompt_tokens = pairs.rows_max;
        std::string const prefix = user_prefix();
        auto const before =
            number_of<std::uint32_t>(metadata_text(metadata_, prefix + "dkv_n_prompt"));
        if (before && *before > facts.prompt_tokens) facts.kept_of = *before;
        facts.model = metadata_text(metadata_, prefix + "model");
        // The user's metadata, so that they go along into another mlx-lm file; dkv's own as they
        // were.
        for (auto const& [key, value] : metadata_) {
            if (!key.starts_with(prefix)) continue;
            std::string const name = key.substr(prefix.size());
            if (name == "model" || name == "dkv_n_prompt") continue;
            facts.provenance[name.starts_with("dkv_") ? name.substr(4) : "mlx." + name] = value;
        }
    }

    TensorFile const& file_;
    Metadata const& metadata_;
    bool counted_ = false;  ///< 0.32 and later: "{l}.2" has the number of tokens.
};

}  // namespace

Result<std::unique_ptr<SavedCache>> open_mlx_file(TensorFile file, OpenOptions const& options) {
    MlxReader reader(file);
    if (auto const read = reader.read(); !read) return located(file.path, read.error());
    apply_options(options, reader.facts);
    auto facts = std::move(reader.facts);
    auto layers = std::move(reader.pairs.layers);
    return std::unique_ptr<SavedCache>(
        std::make_unique<TensorCache>(std::move(file), std::move(facts), std::move(layers)));
}

}  // namespace dkv
