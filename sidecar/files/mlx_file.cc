#include "sidecar/files/mlx_file.h"

#include <fmt/format.h>

#include "sidecar/files/pairs.h"

namespace dkv {
namespace {

std::string mlx_keys_name(std::uint32_t layer) {
    return fmt::format("{}.0", layer);
}
std::string mlx_values_name(std::uint32_t layer) {
    return fmt::format("{}.1", layer);
}

/// Every layer is a plain KVCache. A layer behind a gap would be lost without a word.
Result<void> check_classes(TensorFile const& file) {
    std::size_t classes = 0;
    for (auto const& [key, value] : file.table.metadata) {
        if (!key.starts_with("2.")) continue;
        ++classes;
        if (value != "KVCache")
            return unsupported(fmt::format("layer {} is a {}: only KVCache is known",
                                           shown(key.substr(2)), shown(value)));
    }
    std::size_t const tensors = file.table.tensors.size();
    if (tensors == 2 * classes) return {};
    return corrupt(fmt::format("the metadata name {} layers, for {} tensors", classes, tensors));
}

/// The user's metadata, so that they go along into another mlx-lm file; dkv's own as they were.
std::map<std::string, std::string> provenance_of(Metadata const& metadata) {
    std::map<std::string, std::string> provenance;
    for (auto const& [key, value] : metadata) {
        if (!key.starts_with("1.") || key == "1.model" || key == "1.dkv_n_prompt") continue;
        bool const ours = key.starts_with("1.dkv_");
        provenance[ours ? key.substr(6) : "mlx." + key.substr(2)] = value;
    }
    return provenance;
}

Result<Pairs> read(TensorFile const& file) {
    DKV_TRY(check_classes(file));
    auto pairs = DKV_TRY(read_pairs(file, mlx_keys_name, mlx_values_name));
    if (2 * pairs.layers.size() == file.table.tensors.size()) return pairs;
    return corrupt("there is no " + mlx_keys_name(pairs.geometry.layers));
}

}  // namespace

Result<std::unique_ptr<SavedCache>> open_mlx_file(TensorFile file, OpenOptions const& options) {
    auto pairs = read(file);
    if (!pairs) return located(file.path, pairs.error());
    CacheFacts facts;
    facts.format = FileFormat::MlxLm;
    facts.format_words = "mlx-lm prompt cache";
    facts.geometry = pairs.value().geometry;
    facts.prompt_tokens = pairs.value().rows_max;
    facts.model = metadata_text(file.table.metadata, "1.model");
    facts.provenance = provenance_of(file.table.metadata);
    apply_options(options, facts);
    auto layers = std::move(pairs.value().layers);
    return std::unique_ptr<SavedCache>(
        std::make_unique<TensorCache>(std::move(file), std::move(facts), std::move(layers)));
}

}  // namespace dkv
