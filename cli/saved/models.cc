#include "cli/saved/models.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <system_error>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/container/mapped_file.h"

namespace dkv::cli {
namespace {

constexpr Geometry full(std::uint32_t layers,
                        std::uint32_t q_heads,
                        std::uint32_t kv_heads,
                        std::uint32_t head_dim,
                        Dtype dtype = Dtype::Bf16) {
    return {.layers = layers,
            .q_heads = q_heads,
            .kv_heads = kv_heads,
            .head_dim = head_dim,
            .dtype = dtype};
}

/// As the config.json of each release has it; compared with those that are copied into litgpt
/// (litgpt/config.py at 2685705) and, for internlm2, qwen2-7b and gemma-3-270m, into other public
/// sources. mistral-7b is v0.2 and later: in v0.1, as in phi-3-mini-4k, a window bounds every
/// layer.
constexpr KnownModel kModels[] = {
    {"llama-2-7b", full(32, 32, 32, 128, Dtype::F16)},
    {"llama-2-13b", full(40, 40, 40, 128, Dtype::F16)},
    {"llama-3-8b", full(32, 32, 8, 128)},
    {"llama-3-70b", full(80, 64, 8, 128)},
    {"llama-3.2-1b", full(16, 32, 8, 64)},
    {"llama-3.2-3b", full(28, 24, 8, 128)},
    {"mistral-7b", full(32, 32, 8, 128)},
    {"mixtral-8x7b", full(32, 32, 8, 128)},
    {"internlm2-7b", full(32, 32, 8, 128)},
    {"phi-3-mini-128k", full(32, 32, 32, 96)},
    {"qwen2-7b", full(28, 28, 4, 128)},
    {"qwen2.5-0.5b", full(24, 14, 2, 64)},
    {"qwen2.5-1.5b", full(28, 12, 2, 128)},
    {"qwen2.5-3b", full(36, 16, 2, 128)},
    {"qwen2.5-7b", full(28, 28, 4, 128)},
    {"qwen2.5-14b", full(48, 40, 8, 128)},
    {"qwen2.5-32b", full(64, 40, 8, 128)},
    {"qwen2.5-72b", full(80, 64, 8, 128)},
    {"qwen3-0.6b", full(28, 16, 8, 128)},
    {"qwen3-8b", full(36, 32, 8, 128)},
    {"smollm2-135m", full(30, 9, 3, 64)},
    {"smollm2-360m", full(32, 15, 5, 64)},
    {"smollm2-1.7b", full(24, 32, 32, 64)},
    {"gemma-2b", full(18, 8, 1, 256)},
    {"gemma-7b", full(28, 16, 16, 256)},
    {"gemma-2-9b", full(21, 16, 8, 256), 21},
    {"gemma-3-270m", full(3, 4, 1, 256), 15},
    {"gemma-3-1b", full(4, 4, 1, 256), 22},
    {"gemma-3-4b", full(5, 8, 4, 256), 29},
};

/// Names that people use for one of them.
constexpr std::pair<std::string_view, std::string_view> kOtherNames[] = {
    {"llama-3.1-8b", "llama-3-8b"},     {"llama-3.1-70b", "llama-3-70b"},
    {"llama-3.3-70b", "llama-3-70b"},   {"smollm2", "smollm2-135m"},
    {"internlm2.5-7b", "internlm2-7b"},
};

constexpr std::uint32_t kCountMax = 1U << 20U;

using ConfigJson = nlohmann::json;

/// The fields of a model's configuration, with the file's name in every message.
class ModelConfig {
public:
    ModelConfig(ConfigJson const& json, std::string path) : json_(json), path_(std::move(path)) {}

    Error broken(std::string const& what) const {
        return {ErrorCode::CorruptData, path_ + ": " + what};
    }
    bool has(char const* name) const { return json_.contains(name) && !json_.at(name).is_null(); }
    ConfigJson const& at(char const* name) const { return json_.at(name); }

    Result<std::uint32_t> count(char const* name) const {
        if (!has(name)) return broken(fmt::format("it has no {}", name));
        auto const& value = json_.at(name);
        if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kCountMax)
            return broken(fmt::format("{} is {}, which is not a count", name, value.dump()));
        return value.get<std::uint32_t>();
    }
    std::string text(char const* name) const {
        return has(name) && json_.at(name).is_string() ? json_.at(name).get<std::string>() : "";
    }

private:
    ConfigJson const& json_;
    std::string path_;
};

Result<Dtype> dtype_of(ModelConfig const& config) {
    auto name = config.text("dtype");
    if (name.empty()) name = config.text("torch_dtype");
    if (name.empty() || name == "bfloat16") return Dtype::Bf16;
    if (name == "float16") return Dtype::F16;
    if (name == "float32") return Dtype::F32;
    return config.broken("dtype " + name + " is none of float32, float16, bfloat16");
}

bool uses_window(ModelConfig const& config) {
    if (config.has("use_sliding_window")) return config.at("use_sliding_window") == true;
    return !config.text("model_type").starts_with("qwen");
}

/// A window that no layer is said to have is every layer's (Mistral 0.1, Phi 3), or that of those
/// behind max_window_layers (Qwen). One as long as the longest text bounds nothing.
Result<std::uint32_t> all_or_last_layers(ModelConfig const& config, std::uint32_t layers) {
    if (!config.has("sliding_window") || !uses_window(config)) return 0;
    auto const window = DKV_TRY(config.count("sliding_window"));
    if (config.has("max_position_embeddings") &&
        window >= DKV_TRY(config.count("max_position_embeddings")))
        return 0;
    if (!config.has("max_window_layers")) return layers;
    return layers - std::min(layers, DKV_TRY(config.count("max_window_layers")));
}

/// How many of `layers` a sliding window bounds.
Result<std::uint32_t> bounded_layers(ModelConfig const& config, std::uint32_t layers) {
    if (config.has("layer_types")) {
        auto const& types = config.at("layer_types");
        if (!types.is_array() || types.size() != layers)
            return config.broken("layer_types does not name every layer");
        return static_cast<std::uint32_t>(
            layers - static_cast<std::size_t>(std::ranges::count(types, "full_attention")));
    }
    if (config.has("sliding_window_pattern")) {
        auto const every = DKV_TRY(config.count("sliding_window_pattern"));
        return every == 0 ? 0 : layers - layers / every;
    }
    if (config.text("model_type") == "gemma2") return layers / 2;
    return all_or_last_layers(config, layers);
}

Result<ModelGeometry> geometry_of(ModelConfig const& config, std::string name) {
    auto const layers = DKV_TRY(config.count("num_hidden_layers"));
    auto const heads = DKV_TRY(config.count("num_attention_heads"));
    if (heads == 0) return config.broken("num_attention_heads is 0");
    ModelGeometry model{.name = std::move(name), .geometry = {}, .layers_bounded = 0};
    model.layers_bounded = DKV_TRY(bounded_layers(config, layers));
    if (layers > 0 && model.layers_bounded == layers)
        return config.broken("a sliding window bounds every layer: none is left to compress");
    model.geometry.layers = layers - model.layers_bounded;
    model.geometry.q_heads = heads;
    model.geometry.kv_heads =
        config.has("num_key_value_heads") ? DKV_TRY(config.count("num_key_value_heads")) : heads;
    model.geometry.head_dim = config.has("head_dim") ? DKV_TRY(config.count("head_dim"))
                                                     : DKV_TRY(config.count("hidden_size")) / heads;
    model.geometry.dtype = DKV_TRY(dtype_of(config));
    if (auto const good = check(model.geometry); !good) return config.broken(good.error().message);
    return model;
}

KnownModel const* known_model(std::string_view name) {
    for (auto const& [other, real] : kOtherNames)
        if (name == other) name = real;
    auto const* const found = std::ranges::find(kModels, name, &KnownModel::name);
    return found == std::end(kModels) ? nullptr : found;
}

}  // namespace

std::span<KnownModel const> known_models() {
    return kModels;
}

Result<ModelGeometry> read_config_json(std::filesystem::path const& path) {
    auto const file = DKV_TRY(MappedFile::open(path));
    auto const* const begin = reinterpret_cast<char const*>(file.bytes().data());
    auto const json = ConfigJson::parse(begin, begin + file.bytes().size(), nullptr, false);
    ModelConfig const config(json, path.string());
    if (!json.is_object()) return config.broken("this is not a JSON object");
    // Models that also see or hear keep what reads text in a part of its own.
    bool const nested = json.contains("text_config") && json.at("text_config").is_object();
    auto name = config.text("_name_or_path");
    if (name.empty()) name = config.text("model_type");
    if (name.empty()) name = path.string();
    return geometry_of(nested ? ModelConfig(json.at("text_config"), path.string()) : config,
                       std::move(name));
}

Result<ModelGeometry> find_model(std::string const& name) {
    if (auto const* const known = known_model(name))
        return ModelGeometry{name, known->geometry, known->layers_bounded};
    std::error_code ignored;
    std::filesystem::path const path(name);
    if (std::filesystem::exists(path / "config.json", ignored))
        return read_config_json(path / "config.json");
    if (path.extension() == ".json") return read_config_json(path);
    if (!std::filesystem::exists(path, ignored)) {
        std::vector<std::string_view> names;
        for (auto const& model : kModels)
            names.push_back(model.name);
        return Error{ErrorCode::NotFound,
                     fmt::format("no model and no file is called \"{}\"; known are {}", name,
                                 fmt::join(names, ", "))};
    }
    auto const cache = DKV_TRY(open_cache(path));
    auto const& facts = cache->facts();
    return ModelGeometry{.name = facts.model.empty() ? name : facts.model,
                         .geometry = facts.geometry,
                         .layers_bounded = 0,
                         .prompt_tokens = facts.prompt_tokens};
}

Result<std::pair<std::uint32_t, std::uint32_t>> parse_heads(std::string const& text) {
    std::uint32_t q_heads = 0;
    auto const* const end = text.data() + text.size();
    auto at = std::from_chars(text.data(), end, q_heads);
    std::uint32_t kv_heads = q_heads;
    if (at.ec == std::errc() && at.ptr != end && *at.ptr == '/')
        at = std::from_chars(at.ptr + 1, end, kv_heads);
    if (at.ec != std::errc() || at.ptr != end || q_heads == 0 || kv_heads == 0)
        return Error{ErrorCode::InvalidArgument,
                     "'" + text + "' is not QUERY/KV heads, for example 32/8"};
    return std::pair(q_heads, kv_heads);
}

}  // namespace dkv::cli
