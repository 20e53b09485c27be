#include "cli/saved/formats/vllm_folder.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/saved/formats/folder.h"
#include "cli/saved/formats/layer_files.h"
#include "cli/saved/formats/tensor_cache.h"

namespace dkv {
namespace {

constexpr char const* kTensor = "kv_cache";
constexpr std::string_view kLayerExtension = ".safetensors";

using Shape = std::vector<std::uint64_t>;

/// How one layer's tensor lies. Strides and offsets count elements.
struct Layout {
    std::string name;
    std::uint32_t tokens = 0;
    std::uint32_t heads = 0;
    std::uint32_t head_dim = 0;
    std::uint64_t token_stride = 0;
    std::uint64_t head_stride = 0;
    std::uint64_t values_offset = 0;
};

/// Which layouts a shape can be of.
std::vector<std::string> candidates(Shape const& shape) {
    std::vector<std::string> names;
    if (shape.size() != 3 && shape.size() != 4) return names;
    if (shape[0] == 2) names.emplace_back("2THD");
    if (shape[1] == 2) names.emplace_back("T2HD");
    if (shape.size() == 3) names.emplace_back("TH2D");
    return names;
}

/// What MLA models have instead of keys and values: one row per token, for all heads.
bool is_latent(Shape const& shape) {
    constexpr std::uint64_t kKnownWidths[] = {576, 288, 320};  // DeepSeek, MiniCPM 3 …
    bool const one_head = shape.size() == 3 && shape[1] == 1 &&
                          std::ranges::find(kKnownWidths, shape[2]) != std::end(kKnownWidths);
    return shape.size() == 2 || one_head;
}

Result<std::string> choose(Shape const& shape, std::string const& wanted) {
    auto const names = candidates(shape);
    std::string const what = fmt::format("kv_cache is [{}]", fmt::join(shape, ", "));
    if (wanted.empty() && is_latent(shape))
        return unsupported(what +
                           ": one row per token and neither keys nor values, as MLA (DeepSeek) has "
                           "it, which is not read");
    if (names.empty())
        return corrupt(what +
                       ", not [2, tokens, heads, head_dim] (2THD), [tokens, 2, heads, "
                       "head_dim] (T2HD) or [tokens, heads, 2 · head_dim] (TH2D)");
    if (wanted.empty() && names.size() == 1) return names.front();
    if (wanted.empty())
        return unsupported(
            fmt::format("{}, which may be {}: say --layout", what, fmt::join(names, " or ")));
    if (std::ranges::find(names, wanted) != names.end()) return wanted;
    return Error{ErrorCode::InvalidArgument,
                 fmt::format("{}, which is not {} but {}", what, wanted, fmt::join(names, " or "))};
}

Result<Layout> layout_of(Shape const& shape, OpenOptions const& options) {
    Layout layout{.name = DKV_TRY(choose(shape, options.layout))};
    for (std::uint64_t const extent : shape)
        if (extent == 0 || extent > kExtentMax)
            return corrupt(fmt::format("kv_cache is [{}]", fmt::join(shape, ", ")));
    bool const paired = layout.name == "TH2D";
    std::uint64_t heads = shape.size() == 4 ? shape[2] : paired ? shape[1] : options.kv_heads;
    std::uint64_t dims = shape.back();
    if (heads == 0)
        return unsupported(
            fmt::format("kv_cache is [{}], which does not tell heads from dims: say --kv-heads",
                        fmt::join(shape, ", ")));
    if (shape.size() == 3) {
        std::uint64_t const parts = paired ? 2 : heads;
        if (dims % parts != 0)
            return corrupt(
                fmt::format("kv_cache has rows of {}, not a multiple of {}", dims, parts));
        dims /= parts;
    }
    layout.tokens = static_cast<std::uint32_t>(layout.name == "2THD" ? shape[1] : shape[0]);
    layout.heads = static_cast<std::uint32_t>(heads);
    layout.head_dim = static_cast<std::uint32_t>(dims);
    layout.head_stride = paired ? 2 * dims : dims;
    layout.token_stride = layout.name == "2THD" ? heads * dims : 2 * heads * dims;
    layout.values_offset = paired                  ? dims
                           : layout.name == "T2HD" ? heads * dims
                                                   : layout.tokens * heads * dims;
    return layout;
}

class VllmFolder final : public SavedCache {
public:
    static Result<std::unique_ptr<SavedCache>> open(std::vector<std::filesystem::path> const& files,
                                                    OpenOptions const& options) {
        auto cache = std::make_unique<VllmFolder>();
        for (auto const& path : files) {
            auto mapped = DKV_TRY(MappedFile::open(path));
            cache->files_.push_back(DKV_TRY(TensorFile::open(std::move(mapped), path)));
            auto const added = cache->add_layer(options);
            if (!added) return located(path, added.error());
        }
        CacheFacts& facts = cache->facts_;
        facts.format = FileFormat::Vllm;
        facts.format_words = fmt::format("vLLM ExampleConnector ({})", cache->layout_.name);
        facts.prompt_tokens = cache->layout_.tokens;
        facts.geometry.layers = static_cast<std::uint32_t>(cache->files_.size());
        facts.lengths.assign(cache->files_.size() * facts.geometry.kv_heads, facts.prompt_tokens);
        auto const checked = check(facts.geometry);
        if (!checked) return located(files.front(), corrupt(checked.error().message));
        apply_options(options, facts);
        return std::unique_ptr<SavedCache>(std::move(cache));
    }

    Result<SavedLayer> layer(std::uint32_t index) const override {
        auto const held = std::make_shared<std::vector<std::vector<std::byte>>>();
        auto const& tensor = *files_.at(index).find(kTensor);
        SavedLayer saved;
        auto const dtype = facts_.geometry.dtype;
        auto* const data =
            rows_in(tensor, dtype, layout_.heads, layout_.tokens, layout_.head_dim, *held).data;
        saved.keys = {.data = data,
                      .dtype = dtype,
                      .heads = layout_.heads,
                      .tokens = layout_.tokens,
                      .head_dim = layout_.head_dim,
                      .head_stride = layout_.head_stride,
                      .token_stride = layout_.token_stride};
        saved.values = saved.keys;
        saved.values.data += layout_.values_offset * bytes_of(dtype);
        saved.hold = held;
        return saved;
    }

    Result<void> check_unchanged() const override {
        for (TensorFile const& file : files_)
            DKV_TRY(file.mapped.check_unchanged());
        return {};
    }

    Result<void> verify(std::uint32_t index) const override {
        auto const& file = files_.at(index);
        auto const checked = check_tensor({kTensor, file.find(kTensor)}, true, nullptr);
        if (!checked) return located(file.path, checked.error());
        return {};
    }

private:
    /// The file that was opened last.
    Result<void> add_layer(OpenOptions const& options) {
        TensorFile const& file = files_.back();
        auto const& tensor = *DKV_TRY(file.need(kTensor));
        if (file.table.tensors.size() != 1)
            return corrupt(
                fmt::format("{} tensors, not kv_cache alone", file.table.tensors.size()));
        auto const dtype = DKV_TRY(need_cache_dtype(kTensor, tensor.dtype));
        facts_.file_bytes += file.mapped.bytes().size();
        Geometry& geometry = facts_.geometry;
        if (files_.size() == 1) {
            layout_ = DKV_TRY(layout_of(tensor.shape, options));
            geometry.dtype = dtype;
            geometry.kv_heads = geometry.q_heads = layout_.heads;
            geometry.head_dim = layout_.head_dim;
            return {};
        }
        auto const& first = *files_.front().find(kTensor);
        if (tensor.shape == first.shape && tensor.dtype == first.dtype) return {};
        return corrupt(fmt::format(
            "kv_cache is {} [{}], and {} [{}] in {}", tensor.dtype, fmt::join(tensor.shape, ", "),
            first.dtype, fmt::join(first.shape, ", "), files_.front().path.filename().string()));
    }

    std::vector<TensorFile> files_;
    Layout layout_;
};

struct FolderEntries {
    std::vector<std::filesystem::path> folders;
    std::vector<std::filesystem::path> others;
};

Result<FolderEntries> entries_of(std::filesystem::path const& path) {
    FolderEntries entries;
    std::error_code problem;
    for (std::filesystem::directory_iterator entry(path, problem), end; !problem && entry != end;
         entry.increment(problem)) {
        if (entry->path().filename().native().starts_with('.')) continue;
        bool const folder = entry->is_directory(problem);
        (folder ? entries.folders : entries.others).push_back(entry->path());
    }
    if (problem) return Error{ErrorCode::Io, path.string() + ": " + problem.message()};
    return entries;
}

/// The folder's layers, or those of the one folder in it.
Result<std::vector<std::filesystem::path>> layers_of(std::filesystem::path const& path) {
    auto found = DKV_TRY(files_of(path, kLayerExtension));
    auto const entries = DKV_TRY(entries_of(path));
    auto const& folders = entries.folders;
    if (found.files.empty() && folders.size() == 1)
        found = DKV_TRY(files_of(folders.front(), kLayerExtension));
    DKV_TRY(check_no_leftover(found));
    if (!found.files.empty()) return std::move(found.files);
    if (folders.size() > 1)
        return located(path, unsupported(fmt::format(
                                 "{} folders: give one of them, such as {}", folders.size(),
                                 std::ranges::min(folders).filename().string())));
    auto const inside =
        entries.others.empty()
            ? std::string("it is empty")
            : fmt::format("it has {}", shown(std::ranges::min(entries.others).filename().string()));
    return Error{ErrorCode::Io,
                 fmt::format("{}: a folder of none of the formats I know (vllm: one .safetensors "
                             "per layer; lmcache: .data): {}",
                             path.string(), inside)};
}

/// Whether its files are layers, but for a few that are not; nothing where none can be read.
std::optional<bool> has_layers(std::filesystem::path const& folder) {
    auto const found = files_of(folder, kLayerExtension);
    if (!found) return false;
    std::size_t layers = 0;
    std::size_t others = 0;
    for (auto const& path : found.value().files) {
        auto mapped = MappedFile::open(path);
        if (!mapped) continue;
        auto const file = TensorFile::open(std::move(mapped).value(), path);
        if (file) ++(file.value().find(kTensor) != nullptr ? layers : others);
    }
    return layers + others == 0 ? std::nullopt : std::optional(layers > others);
}

}  // namespace

bool is_vllm_folder(std::filesystem::path const& path) {
    if (auto const layers = has_layers(path)) return *layers;
    auto const entries = entries_of(path);
    return entries && entries.value().folders.size() == 1 &&
           has_layers(entries.value().folders.front()).value_or(false);
}

Result<std::unique_ptr<SavedCache>> open_vllm_folder(std::filesystem::path const& path,
                                                     OpenOptions const& options) {
    auto const files = DKV_TRY(layers_of(path));
    if (files.size() > kLayersMax)
        return located(
            path, corrupt(fmt::format("{} files, more than {} layers", files.size(), kLayersMax)));
    DKV_TRY(check_layer_files(files.front().parent_path(), files));
    return VllmFolder::open(files, options);
}

}  // namespace dkv
