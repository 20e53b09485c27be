// Which reader a file is for, by its bytes; never by its name.
#include <algorithm>

#include <fmt/format.h>

#include "cli/saved/formats/dkv_file.h"
#include "cli/saved/formats/hf_file.h"
#include "cli/saved/formats/layer_count.h"
#include "cli/saved/formats/llama_file.h"
#include "cli/saved/formats/lmcache_folder.h"
#include "cli/saved/formats/lmcache_names.h"
#include "cli/saved/formats/mlx_file.h"
#include "cli/saved/formats/unknown_file.h"
#include "cli/saved/formats/vllm_folder.h"

namespace dkv {
namespace {

using Opened = Result<std::unique_ptr<SavedCache>>;

Opened refuse(std::filesystem::path const& path, Error const& error) {
    return located(path, error);
}

/// Whether `name` is `prefix`, a number and `suffix`.
bool is_numbered(std::string_view name, std::string_view prefix, std::string_view suffix) {
    if (!name.starts_with(prefix) || !name.ends_with(suffix)) return false;
    name.remove_prefix(prefix.size());
    return name.size() > suffix.size() && plain_number(name.substr(0, name.size() - suffix.size()));
}

/// What a container's tensors are called. Any layer's names tell, for the first may be missing.
std::optional<FileFormat> format_of(TensorTable const& table) {
    auto const has = [&](std::string_view prefix, std::string_view suffix) {
        return std::ranges::any_of(table.tensors, [&](auto const& entry) {
            return is_numbered(entry.first, prefix, suffix);
        });
    };
    if (metadata_text(table.metadata, "format") == "dkv" || has("layers.", ".keys") ||
        has("layers.", ".values"))
        return FileFormat::Dkv;
    if (has("k_", "") || has("v_", "")) return FileFormat::Hf;
    if (has("", ".0") || has("", ".1") || table.metadata.contains("2.0")) return FileFormat::MlxLm;
    return std::nullopt;
}

Error unknown_tensors(TensorTable const& table) {
    constexpr std::string_view kWanted = "layers.0.keys of dkv, k_0 of hf, 0.0 of mlx-lm";
    if (table.tensors.empty())
        return corrupt(fmt::format("none of the formats I know ({}): safetensors without tensors",
                                   known_formats()));
    bool const weights = std::ranges::any_of(
        table.tensors, [](auto const& entry) { return entry.first.ends_with(".weight"); });
    return corrupt(fmt::format("none of the formats I know ({}): safetensors{}, with {} and not {}",
                               known_formats(), weights ? " of a model's weights" : "",
                               shown(table.tensors.begin()->first), kWanted));
}

Opened open_container(MappedFile mapped,
                      std::filesystem::path const& path,
                      OpenOptions const& options) {
    auto file = DKV_TRY(TensorFile::open(std::move(mapped), path));
    auto const format = options.format ? options.format : format_of(file.table);
    if (format == FileFormat::Dkv) return open_dkv_file(std::move(file), options);
    if (format == FileFormat::Hf) return open_hf_file(std::move(file), options);
    if (format && is_mlx_lm(*format)) return open_mlx_file(std::move(file), options);
    if (file.find("kv_cache") != nullptr)
        return refuse(path,
                      unsupported("one layer of a vLLM cache: give the folder that it is in"));
    return refuse(path, unknown_tensors(file.table));
}

Opened open_file(std::filesystem::path const& path, OpenOptions const& options) {
    auto mapped = DKV_TRY(MappedFile::open(path));
    auto const bytes = mapped.bytes();
    auto const format = options.format;
    if (format == FileFormat::LlamaState || format == FileFormat::LlamaSlot ||
        (!format && is_llama_file(bytes)))
        return open_llama_file(std::move(mapped), path, options);
    if (format == FileFormat::Lmcache || (!format && is_lmcache_chunk(bytes)))
        return open_lmcache({path}, path, options);
    if (!looks_like_safetensors(bytes)) return refuse(path, unknown_file(bytes));
    return open_container(std::move(mapped), path, options);
}

}  // namespace

bool is_cache_folder(std::filesystem::path const& path) {
    return is_lmcache_folder(path) || is_vllm_folder(path);
}

Result<std::unique_ptr<SavedCache>> open_cache(std::filesystem::path const& path,
                                               OpenOptions const& options) {
    std::error_code problem;
    if (!std::filesystem::is_directory(path, problem)) return open_file(path, options);
    auto const chunks = DKV_TRY(lmcache_chunks(path));
    if (options.format == FileFormat::Lmcache || (!options.format && !chunks.empty()))
        return open_lmcache(chunks, path, options);
    if (options.format && options.format != FileFormat::Vllm)
        return refuse(path, Error{ErrorCode::Io, fmt::format("a folder, where {} is a file",
                                                             name_of(*options.format))});
    return open_vllm_folder(path, options);
}

}  // namespace dkv
