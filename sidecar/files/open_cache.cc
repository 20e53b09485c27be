// Which reader a file is for, by its bytes; never by its name.
#include <fmt/format.h>

#include "sidecar/files/dkv_file.h"
#include "sidecar/files/hf_file.h"
#include "sidecar/files/llama_file.h"
#include "sidecar/files/lmcache_folder.h"
#include "sidecar/files/mlx_file.h"
#include "sidecar/files/vllm_folder.h"

namespace dkv {
namespace {

using Opened = Result<std::unique_ptr<SavedCache>>;

constexpr std::string_view kTorchMagic = "PK\x03\x04";

bool begins_with(std::span<std::byte const> bytes, std::string_view magic) {
    return std::string_view(reinterpret_cast<char const*>(bytes.data()), bytes.size())
        .starts_with(magic);
}

Opened refuse(std::filesystem::path const& path, Error const& error) {
    return located(path, error);
}

/// What a container's tensors are called.
std::optional<FileFormat> format_of(TensorTable const& table) {
    auto const has = [&](char const* name) { return table.tensors.contains(name); };
    if (metadata_text(table.metadata, "format") == "dkv" || has("layers.0.keys"))
        return FileFormat::Dkv;
    if (has("k_0") || has("v_0")) return FileFormat::Hf;
    if (has("0.0") || has("0.1") || table.metadata.contains("2.0")) return FileFormat::MlxLm;
    return std::nullopt;
}

Opened open_container(MappedFile mapped,
                      std::filesystem::path const& path,
                      OpenOptions const& options) {
    auto file = DKV_TRY(TensorFile::open(std::move(mapped), path));
    auto const format = options.format ? options.format : format_of(file.table);
    if (format == FileFormat::Dkv) return open_dkv_file(std::move(file), options);
    if (format == FileFormat::Hf) return open_hf_file(std::move(file), options);
    if (format == FileFormat::MlxLm) return open_mlx_file(std::move(file), options);
    if (file.find("kv_cache") != nullptr)
        return refuse(path,
                      unsupported("one layer of a vLLM cache: give the folder that it is in"));
    return refuse(path, corrupt("none of its tensors is a cache's (layers.0.keys, k_0, 0.0)"));
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
    if (begins_with(bytes, kTorchMagic))
        return refuse(path, unsupported("torch.save's files are read by the Python package alone: "
                                        "python -m dkv convert, or dkv.hf.convert()"));
    return open_container(std::move(mapped), path, options);
}

}  // namespace

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
