#include "sidecar/files/dkv_file.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "protocol/files/safetensors.h"

namespace dkv {
namespace {

constexpr std::uint64_t kExtentMax = std::numeric_limits<std::int32_t>::max();

Error corrupt(std::string message) {
    return {ErrorCode::CorruptData, std::move(message)};
}

template <class T>
std::optional<T> number(std::string_view text) {
    T value{};
    auto const* const end = text.data() + text.size();
    auto const [rest, error] = std::from_chars(text.data(), end, value);
    return error == std::errc() && rest == end ? std::optional(value) : std::nullopt;
}

std::optional<Dtype> dtype_of(std::string_view name) {
    if (name == "F32") return Dtype::F32;
    if (name == "F16") return Dtype::F16;
    if (name == "BF16") return Dtype::Bf16;
    return std::nullopt;
}

class DkvFile final : public SavedCache {
public:
    DkvFile(MappedFile file, std::filesystem::path path)
        : file_(std::move(file)), path_(std::move(path)) {}

    Result<SavedLayer> layer(std::uint32_t index) const override { return layers_.at(index); }
    std::span<std::byte const> bytes() const noexcept { return file_.bytes(); }
    std::span<std::byte const> mapped() const noexcept override { return file_.bytes(); }
    Result<void> verify(std::uint32_t /*layer*/) const override { return {}; }

private:
    friend class DkvFileReader;

    MappedFile file_;
    std::filesystem::path path_;
    std::vector<SavedLayer> layers_;
};

/// Fills a DkvFile from its tensors; messages do not name the path yet.
class DkvFileReader {
public:
    DkvFileReader(DkvFile& file, TensorTable const& table) : file_(file), table_(table) {}

    Result<void> read() {
        DKV_TRY(read_metadata());
        DKV_TRY(read_geometry());
        for (std::uint32_t layer = 0; layer < file_.facts_.geometry.layers; ++layer)
            file_.layers_.push_back(DKV_TRY(read_layer(layer)));
        auto& facts = file_.facts_;
        facts.format_words = "dkv 1";
        facts.file_bytes = file_.bytes().size();
        facts.lengths.assign(std::size_t{facts.geometry.layers} * facts.geometry.kv_heads,
                             facts.prompt_tokens);
        return {};
    }

private:
    Result<std::string_view> metadata(char const* key) const {
        auto const found = table_.metadata.find(key);
        if (found == table_.metadata.end())
            return corrupt(fmt::format("the metadata has no \"{}\"", key));
        return std::string_view(found->second);
    }

    /// A finite number of at least 0, 0 where there is none.
    Result<float> optional_number(char const* key) const {
        auto const found = table_.metadata.find(key);
        if (found == table_.metadata.end()) return 0.0f;
        auto const value = number<float>(found->second);
        if (!value || !std::isfinite(*value) || *value < 0)
            return corrupt(fmt::format("the metadata's {} is no number of at least 0", key));
        return *value;
    }

    Result<void> read_metadata() {
        if (DKV_TRY(metadata("format")) != "dkv")
            return corrupt("the metadata's format is not \"dkv\"");
        if (DKV_TRY(metadata("version")) != "1")
            return Error{ErrorCode::Unsupported, "its version is not 1, the only one known here"};
        file_.facts_.model = DKV_TRY(metadata("model"));
        auto const tokens = number<std::uint32_t>(DKV_TRY(metadata("n_prompt")));
        if (!tokens || *tokens == 0 || *tokens > kExtentMax)
            return corrupt("the metadata's n_prompt is no count of tokens");
        file_.facts_.prompt_tokens = *tokens;
        file_.facts_.scale = DKV_TRY(optional_number("scale"));
        file_.facts_.softcap = DKV_TRY(optional_number("softcap"));
        return {};
    }

    static std::string name(std::uint32_t layer, char const* part) {
        return fmt::format("layers.{}.{}", layer, part);
    }
    FileTensor const* find(std::string const& tensor) const {
        auto const found = table_.tensors.find(tensor);
        return found == table_.tensors.end() ? nullptr : &found->second;
    }

    /// What the first layer says; the others must agree.
    Result<void> read_geometry() {
        auto& geometry = file_.facts_.geometry;
        while (find(name(geometry.layers, "keys")) != nullptr)
            ++geometry.layers;
        if (geometry.layers == 0) return corrupt("there is no layers.0.keys");
        FileTensor const& keys = *find(name(0, "keys"));
        auto const dtype = dtype_of(keys.dtype);
        if (!dtype) return corrupt("layers.0.keys is " + keys.dtype + ", not F32, F16 or BF16");
        if (keys.shape.size() != 3)
            return Error{ErrorCode::Unsupported,
                         "layers.0.keys has not three dimensions: a compacted cache cannot be "
                         "compressed again"};
        for (std::uint64_t const extent : keys.shape)
            if (extent == 0 || extent > kExtentMax)
                return corrupt(fmt::format("layers.0.keys is [{}]", fmt::join(keys.shape, ", ")));
        geometry.dtype = *dtype;
        geometry.kv_heads = geometry.q_heads = static_cast<std::uint32_t>(keys.shape[0]);
        geometry.head_dim = static_cast<std::uint32_t>(keys.shape[2]);
        if (FileTensor const* queries = find(name(0, "q_window"))) {
            bool const fits = queries->shape.size() == 3 && queries->shape[0] > 0 &&
                              queries->shape[0] <= kExtentMax && queries->shape[1] > 0 &&
                              queries->shape[1] <= file_.facts_.prompt_tokens;
            if (!fits)
                return corrupt(fmt::format("layers.0.q_window is [{}], of {} tokens",
                                           fmt::join(queries->shape, ", "),
                                           file_.facts_.prompt_tokens));
            geometry.q_heads = static_cast<std::uint32_t>(queries->shape[0]);
            file_.facts_.query_rows = static_cast<std::uint32_t>(queries->shape[1]);
        }
        auto const checked = check(geometry);
        if (!checked) return corrupt(checked.error().message);
        return {};
    }

    Result<RowsView> rows(std::string const& tensor_name,
                          std::uint32_t heads,
                          std::uint32_t tokens) const {
        FileTensor const* const tensor = find(tensor_name);
        auto const& geometry = file_.facts_.geometry;
        if (tensor == nullptr) return corrupt("there is no " + tensor_name);
        std::vector<std::uint64_t> const wanted{heads, tokens, geometry.head_dim};
        if (dtype_of(tensor->dtype) != geometry.dtype || tensor->shape != wanted)
            return Error{tensor->shape.size() == 3 && tensor->shape[1] < tokens
                             ? ErrorCode::Unsupported
                             : ErrorCode::CorruptData,
                         fmt::format("{} is {} [{}], not {} [{}]", tensor_name, tensor->dtype,
                                     fmt::join(tensor->shape, ", "), name_of(geometry.dtype),
                                     fmt::join(wanted, ", "))};
        return dense_rows(const_cast<std::byte*>(tensor->bytes.data()), geometry.dtype, heads,
                          tokens, geometry.head_dim);
    }

    Result<SavedLayer> read_layer(std::uint32_t layer) const {
        auto const& geometry = file_.facts_.geometry;
        SavedLayer saved;
        saved.keys =
            DKV_TRY(rows(name(layer, "keys"), geometry.kv_heads, file_.facts_.prompt_tokens));
        saved.values =
            DKV_TRY(rows(name(layer, "values"), geometry.kv_heads, file_.facts_.prompt_tokens));
        if (file_.facts_.query_rows > 0)
            saved.queries =
                DKV_TRY(rows(name(layer, "q_window"), geometry.q_heads, file_.facts_.query_rows));
        return saved;
    }

    DkvFile& file_;
    TensorTable const& table_;
};

}  // namespace

Result<std::unique_ptr<SavedCache>> open_dkv_file(MappedFile mapped,
                                                  std::filesystem::path const& path) {
    auto file = std::make_unique<DkvFile>(std::move(mapped), path);
    auto const located = [&](Error const& error) {
        return Error{error.code, path.string() + ": " + error.message};
    };
    auto const table = parse_safetensors(file->bytes());
    if (!table) return located(table.error());
    auto const read = DkvFileReader(*file, table.value()).read();
    if (!read) return located(read.error());
    return std::unique_ptr<SavedCache>(std::move(file));
}

}  // namespace dkv
