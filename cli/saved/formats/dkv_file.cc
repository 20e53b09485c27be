#include "cli/saved/formats/dkv_file.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "cli/saved/formats/layer_count.h"
#include "protocol/base/sink_logits.h"
#include "protocol/container/checksums.h"
#include "protocol/container/dkv_plan.h"

namespace dkv {
namespace {

/// "layers.12.keys": 12.
std::optional<std::uint64_t> dkv_layer(std::string_view name) {
    constexpr std::string_view kPrefix = "layers.";
    if (!name.starts_with(kPrefix)) return std::nullopt;
    name.remove_prefix(kPrefix.size());
    return plain_number(name.substr(0, name.find('.')));
}

/// Finds out what a file has; messages do not name the path yet.
class DkvReader {
public:
    explicit DkvReader(TensorFile const& file) : file_(file), metadata_(file.table.metadata) {}

    Result<void> read() {
        DKV_TRY(read_metadata());
        DKV_TRY(read_geometry());
        for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer)
            layers.push_back(DKV_TRY(read_layer(layer)));
        DKV_TRY(read_tokens());
        DKV_TRY(check_places());
        return read_crcs();
    }

    CacheFacts facts;
    std::vector<LayerTensors> layers;
    std::map<std::string, std::uint32_t, std::less<>> crcs;
    std::optional<QuantisedRows> quantised;

private:
    Result<std::string_view> need(char const* key) const {
        auto const found = metadata_.find(key);
        if (found == metadata_.end())
            return corrupt(fmt::format("the metadata has no \"{}\"", key));
        return std::string_view(found->second);
    }

    Result<void> read_metadata() {
        if (auto const format = DKV_TRY(need("format")); format != "dkv")
            return corrupt(fmt::format("the metadata's format is {}, not \"dkv\"", shown(format)));
        auto const version = DKV_TRY(need("version"));
        if (version != kDkvVersion && version != kDkvVersionQuantised)
            return unsupported(fmt::format(
                "the metadata's version is {}, and this dkv reads 1 and 2", shown(version)));
        is_quantised_ = version == kDkvVersionQuantised;
        facts.model = DKV_TRY(need("model"));
        auto const said = DKV_TRY(need("n_prompt"));
        auto const tokens = number_of<std::uint32_t>(said);
        if (!tokens || *tokens == 0 || *tokens > kExtentMax)
            return corrupt(
                fmt::format("the metadata's n_prompt is {}, not a number of tokens", shown(said)));
        facts.format = FileFormat::Dkv;
        facts.format_words = "dkv " + std::string(version);
        facts.prompt_tokens = *tokens;
        facts.scale = static_cast<float>(DKV_TRY(metadata_number(metadata_, "scale")));
        facts.softcap = static_cast<float>(DKV_TRY(metadata_number(metadata_, "softcap")));
        facts.rope = DKV_TRY(metadata_rope(metadata_));
        for (auto const& [key, value] : metadata_)
            if (key.starts_with(kProvenancePrefix))
                facts.provenance[key.substr(kProvenancePrefix.size())] = value;
        // Files that were made of llama.cpp's before the order was asked for.
        auto const source = facts.provenance.find("source_format");
        if (source != facts.provenance.end() && source->second.starts_with("llama") &&
            !metadata_.contains("rope.interleaved"))
            facts.rope.order_known = false;
        return {};
    }

    NamedTensor named(std::uint32_t layer, char const* part) {
        NamedTensor found{dkv_tensor(layer, part), nullptr};
        found.tensor = file_.find(found.name);
        if (found.tensor != nullptr) placed_.insert(found.name);
        return found;
    }
    Result<NamedTensor> needed(std::uint32_t layer, char const* part) {
        auto found = named(layer, part);
        if (found.tensor == nullptr) return corrupt(found.name + " is missing");
        return found;
    }

    static bool is_extent(std::uint64_t extent) { return extent > 0 && extent <= kExtentMax; }

    /// What the first layer says; the others must agree.
    Result<void> read_geometry() {
        auto& geometry = facts.geometry;
        geometry.layers = DKV_TRY(count_layers(file_.table, dkv_layer));
        auto const keys = DKV_TRY(needed(0, "keys"));
        auto const offsets = named(0, "head_offsets");
        auto const& shape = keys.tensor->shape;
        auto const dtype = DKV_TRY(row_dtype(keys));
        bool const ragged = offsets.tensor != nullptr;
        if (shape.size() != (ragged ? 2 : 3) || !is_extent(shape.back()) ||
            (!ragged && !is_extent(shape.front())))
            return corrupt("layers.0.keys is " + keys.shape());
        if (ragged && (offsets.tensor->shape.size() != 1 || offsets.tensor->shape[0] < 2 ||
                       offsets.tensor->shape[0] > kExtentMax))
            return corrupt("layers.0.head_offsets is " + offsets.shape());
        geometry.dtype = dtype;
        geometry.head_dim = static_cast<std::uint32_t>(shape.back());
        if (is_quantised_) DKV_TRY(read_quantised(keys));
        geometry.kv_heads =
            static_cast<std::uint32_t>(ragged ? offsets.tensor->shape[0] - 1 : shape[0]);
        geometry.q_heads = geometry.kv_heads;
        if (auto const queries = named(0, "q_window"); queries.tensor != nullptr) {
            auto const& rows = queries.tensor->shape;
            if (rows.size() != 3 || !is_extent(rows[0]) || rows[1] == 0 ||
                rows[1] > facts.prompt_tokens)
                return corrupt(fmt::format("layers.0.q_window is [{}], of {} tokens",
                                           fmt::join(rows, ", "), facts.prompt_tokens));
            geometry.q_heads = static_cast<std::uint32_t>(rows[0]);
            facts.query_rows = static_cast<std::uint32_t>(rows[1]);
        } else {
            DKV_TRY(read_q_heads_of_sinks());
        }
        auto const checked = check(geometry);
        if (!checked) return corrupt(checked.error().message);
        return {};
    }

    /// What elements of K and V are, once they are read.
    Result<Dtype> row_dtype(NamedTensor const& keys) const {
        if (!is_quantised_) return need_cache_dtype(keys.name, keys.tensor->dtype);
        auto const said = DKV_TRY(need("rows.dtype"));
        if (auto const dtype = cache_dtype(said)) return *dtype;
        return corrupt(fmt::format("the metadata's rows.dtype is {}", shown(said)));
    }

    /// Whose blocks a row is, and how many dims that makes.
    Result<void> read_quantised(NamedTensor const& keys) {
        auto const type = DKV_TRY(need("rows"));
        auto const said = DKV_TRY(need("rows.rotation"));
        auto const rotation = number_of<std::uint32_t>(said);
        if (!rotation || *rotation == 0)
            return corrupt(fmt::format("the metadata's rows.rotation is {}", shown(said)));
        quantised = DKV_TRY(quantised_rows(type, *rotation, keys.tensor->shape.back()));
        facts.geometry.head_dim = quantised->head_dim;
        facts.stored = StoredRows{
            .type = fmt::format("{}, rotated by {}", type, *rotation),
            .key_row_bytes = quantised->row_bytes(),
            .value_row_bytes = quantised->row_bytes(),
        };
        return {};
    }

    /// The last extent of K and V.
    std::uint64_t row_extent() const {
        return quantised ? quantised->row_bytes() : facts.geometry.head_dim;
    }

    /// Any layer may have sinks, or none.
    Result<void> read_q_heads_of_sinks() {
        for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer) {
            auto const sinks = named(layer, "sink_logits");
            if (sinks.tensor == nullptr) continue;
            auto const& shape = sinks.tensor->shape;
            if (shape.size() != 1 || !is_extent(shape[0]))
                return corrupt(sinks.name + " is " + sinks.shape());
            facts.geometry.q_heads = static_cast<std::uint32_t>(shape[0]);
            return {};
        }
        return {};
    }

    Result<void> read_sinks(std::uint32_t layer, NamedTensor const& sinks) {
        if (sinks.tensor == nullptr) return {};
        DKV_TRY(check_is(sinks, "F32", {facts.geometry.q_heads}));
        facts.sink_logits.resize(facts.geometry.layers);
        facts.sink_logits[layer] = read_elements<float>(*sinks.tensor);
        auto const checked = check_sink_logits(facts.sink_logits[layer], facts.geometry.q_heads);
        if (!checked) return corrupt(fmt::format("layers.{}.{}", layer, checked.error().message));
        return {};
    }

    static Result<void> check_is(NamedTensor const& tensor,
                                 std::string_view dtype,
                                 std::vector<std::uint64_t> const& shape) {
        if (tensor.tensor->dtype == dtype && tensor.tensor->shape == shape) return {};
        return corrupt(fmt::format("{} is {}, not {} [{}]", tensor.name, tensor.shape(), dtype,
                                   fmt::join(shape, ", ")));
    }

    Result<LayerTensors> read_layer(std::uint32_t layer) {
        Geometry const& geometry = facts.geometry;
        auto const dtype = container_dtype(geometry.dtype);
        LayerTensors found;
        found.keys = DKV_TRY(needed(layer, "keys"));
        found.values = DKV_TRY(needed(layer, "values"));
        found.positions = named(layer, "positions");
        found.head_offsets = named(layer, "head_offsets");
        auto const shape =
            DKV_TRY(found.head_offsets.tensor != nullptr ? ragged(found) : uniform(found));
        auto const of_rows = quantised ? std::string_view("U8") : dtype;
        DKV_TRY(check_is(found.keys, of_rows, shape));
        DKV_TRY(check_is(found.values, of_rows, shape));
        if (quantised && quantised->refined) DKV_TRY(read_refined(layer, found));
        if (found.positions.tensor != nullptr)
            DKV_TRY(check_is(found.positions, "I32", {shape.begin(), shape.end() - 1}));
        if (facts.query_rows > 0) {
            found.queries = DKV_TRY(needed(layer, "q_window"));
            DKV_TRY(check_is(found.queries, dtype,
                             {geometry.q_heads, facts.query_rows, geometry.head_dim}));
        }
        found.sink_logits = named(layer, "sink_logits");
        DKV_TRY(read_sinks(layer, found.sink_logits));
        found.scores = named(layer, "scores");
        DKV_TRY(check_scores(layer, found));
        return found;
    }

    /// Which of the layer's rows are refined, and by what.
    Result<void> read_refined(std::uint32_t layer, LayerTensors& found) {
        found.refined = DKV_TRY(needed(layer, "refined"));
        found.keys_rest = DKV_TRY(needed(layer, "keys_rest"));
        found.values_rest = DKV_TRY(needed(layer, "values_rest"));
        auto const& shape = found.refined.tensor->shape;
        if (shape.size() != 1)
            return corrupt(fmt::format("{} is {}", found.refined.name, found.refined.shape()));
        DKV_TRY(check_is(found.refined, "I32", shape));
        DKV_TRY(check_is(found.keys_rest, "U8", {shape[0], row_extent()}));
        DKV_TRY(check_is(found.values_rest, "U8", {shape[0], row_extent()}));
        facts.stored->rest_bytes.push_back(2 * shape[0] * row_extent());
        return {};
    }

    /// In every layer or in none, of every token.
    Result<void> check_scores(std::uint32_t layer, LayerTensors const& found) {
        bool const has = found.scores.tensor != nullptr;
        if (layer == 0) facts.has_scores = has;
        if (has != facts.has_scores)
            return corrupt(fmt::format("{} is {}, and layers.0.scores is {}", found.scores.name,
                                       has ? "there" : "missing", has ? "missing" : "there"));
        if (!has) return {};
        DKV_TRY(check_is(found.scores, "F32", {facts.geometry.kv_heads, facts.prompt_tokens}));
        if (found.positions.tensor == nullptr) return {};
        return corrupt(found.scores.name + " is of every token, and the layer lacks tokens");
    }

    /// The shape that keys and values must have.
    Result<std::vector<std::uint64_t>> uniform(LayerTensors& found) const {
        auto const& shape = found.keys.tensor->shape;
        std::uint64_t const rows = shape.size() == 3 ? shape[1] : facts.prompt_tokens;
        if (rows > facts.prompt_tokens)
            return corrupt(fmt::format("{} is {}, of {} tokens", found.keys.name,
                                       found.keys.shape(), facts.prompt_tokens));
        if (rows < facts.prompt_tokens && found.positions.tensor == nullptr)
            return corrupt(fmt::format("{} has {} of {} tokens, but {} is missing", found.keys.name,
                                       rows, facts.prompt_tokens, found.positions.name));
        found.rows = static_cast<std::uint32_t>(rows);
        return std::vector<std::uint64_t>{facts.geometry.kv_heads, rows, row_extent()};
    }

    Result<std::vector<std::uint64_t>> ragged(LayerTensors& found) const {
        std::string const& name = found.head_offsets.name;
        DKV_TRY(check_is(found.head_offsets, "I32", {std::uint64_t{facts.geometry.kv_heads} + 1}));
        if (found.positions.tensor == nullptr) return corrupt(found.positions.name + " is missing");
        std::int64_t before = 0;
        for (std::int32_t const offset : read_elements<std::int32_t>(*found.head_offsets.tensor)) {
            bool const first = found.head_rows.empty();
            if (offset < before || (first && offset != 0) ||
                offset - before > std::int64_t{facts.prompt_tokens})
                return corrupt(fmt::format("{} has {} after {}, of {} tokens", name, offset, before,
                                           facts.prompt_tokens));
            found.head_rows.push_back(static_cast<std::uint32_t>(offset));
            before = offset;
        }
        return std::vector<std::uint64_t>{found.head_rows.back(), row_extent()};
    }

    Result<void> read_tokens() {
        NamedTensor const tokens{kTokensTensor, file_.find(kTokensTensor)};
        if (tokens.tensor == nullptr) return {};
        DKV_TRY(check_is(tokens, "I32", {facts.prompt_tokens}));
        placed_.insert(tokens.name);
        facts.tokens = read_elements<std::int32_t>(*tokens.tensor);
        return {};
    }

    /// A layer behind a gap would be lost without a word.
    Result<void> check_places() const {
        for (auto const& [name, tensor] : file_.table.tensors)
            if (!placed_.contains(name))
                return corrupt(fmt::format("the tensor {} does not belong in a file of {} layers{}",
                                           shown(name), facts.geometry.layers,
                                           facts.query_rows == 0 ? " without queries" : ""));
        return {};
    }

    Result<void> read_crcs() {
        std::string const prefix = crc_key("");
        for (auto const& [key, value] : metadata_) {
            if (!key.starts_with(prefix)) continue;
            std::string const tensor = key.substr(prefix.size());
            auto const crc = parse_crc(value);
            if (!crc || file_.find(tensor) == nullptr)
                return corrupt(fmt::format("the metadata's {} is {}", shown(key),
                                           crc ? "of no tensor" : "no checksum"));
            crcs[tensor] = *crc;
        }
        bool const sealed = metadata_.contains(kHeaderCrcKey);
        if (crcs.empty() && !sealed) return {};
        for (auto const& [name, tensor] : file_.table.tensors)
            if (!crcs.contains(name))
                return corrupt(fmt::format("the metadata has checksums, but none of {}", name));
        if (!sealed) return corrupt("the metadata has checksums, but none of the header");
        return check_header_crc(file_.table);
    }

    TensorFile const& file_;
    Metadata const& metadata_;
    std::set<std::string, std::less<>> placed_;
    bool is_quantised_ = false;
};

}  // namespace

Result<std::unique_ptr<SavedCache>> open_dkv_file(TensorFile file, OpenOptions const& options) {
    DkvReader reader(file);
    if (auto const read = reader.read(); !read) return located(file.path, read.error());
    apply_options(options, reader.facts);
    auto facts = std::move(reader.facts);
    auto layers = std::move(reader.layers);
    auto crcs = std::move(reader.crcs);
    auto const quantised = reader.quantised;
    return std::unique_ptr<SavedCache>(std::make_unique<TensorCache>(
        std::move(file), std::move(facts), std::move(layers), std::move(crcs), quantised));
}

}  // namespace dkv
