#include "cli/saved/formats/tensor_cache.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "cli/saved/formats/check_bytes.h"

namespace dkv {

Result<TensorFile> TensorFile::open(MappedFile mapped, std::filesystem::path const& path) {
    auto table = parse_safetensors(mapped.bytes());
    if (!table) return located(path, table.error());
    return TensorFile{std::move(mapped), path, std::move(table).value()};
}

FileTensor const* TensorFile::find(std::string_view name) const {
    auto const found = table.tensors.find(name);
    return found == table.tensors.end() ? nullptr : &found->second;
}

Result<FileTensor const*> TensorFile::need(std::string_view name) const {
    FileTensor const* const found = find(name);
    if (found == nullptr) return corrupt(fmt::format("{} is missing", name));
    return found;
}

std::string NamedTensor::shape() const {
    return fmt::format("{} [{}]", tensor->dtype, fmt::join(tensor->shape, ", "));
}

RowsView rows_in(FileTensor const& tensor,
                 Dtype dtype,
                 std::uint32_t heads,
                 std::uint32_t tokens,
                 std::uint32_t head_dim,
                 std::vector<std::vector<std::byte>>& held) {
    auto const* data = tensor.bytes.data();
    // Only files of writers that do not pad their header.
    if (reinterpret_cast<std::uintptr_t>(data) % bytes_of(dtype) != 0) {
        held.emplace_back(tensor.bytes.begin(), tensor.bytes.end());
        data = held.back().data();
    }
    return dense_rows(const_cast<std::byte*>(data), dtype, heads, tokens, head_dim);
}

Result<void> check_tensor(NamedTensor const& tensor, bool numbers, std::uint32_t const* crc) {
    auto const report =
        check_bytes(tensor.tensor->bytes,
                    numbers ? cache_dtype(tensor.tensor->dtype) : std::nullopt, crc != nullptr);
    if (crc != nullptr && report.crc != *crc)
        return corrupt(
            fmt::format("{}: its CRC-32 is {:08x}, not {:08x}", tensor.name, report.crc, *crc));
    if (!report.not_finite) return {};
    return corrupt(
        fmt::format("{}: element {} is a NaN or an infinity", tensor.name, *report.not_finite));
}

TensorCache::TensorCache(TensorFile file,
                         CacheFacts facts,
                         std::vector<LayerTensors> layers,
                         std::map<std::string, std::uint32_t, std::less<>> crcs,
                         std::optional<QuantisedRows> quantised)
    : file_(std::move(file)),
      layers_(std::move(layers)),
      crcs_(std::move(crcs)),
      quantised_(quantised) {
    facts_ = std::move(facts);
    DKV_ASSERT(layers_.size() == facts_.geometry.layers);
    for (LayerTensors const& layer : layers_)
        for (std::uint32_t head = 0; head < facts_.geometry.kv_heads; ++head)
            facts_.lengths.push_back(layer.rows_of(head));
    facts_.compacted = std::ranges::any_of(
        facts_.lengths, [&](std::uint32_t rows) { return rows < facts_.prompt_tokens; });
    facts_.file_bytes = file_.mapped.bytes().size();
    facts_.has_checksums = !crcs_.empty();
}

Result<std::vector<std::int32_t>> TensorCache::positions(LayerTensors const& layer) const {
    if (layer.positions.tensor == nullptr) return std::vector<std::int32_t>();
    auto values = read_elements<std::int32_t>(*layer.positions.tensor);
    std::size_t at = 0;
    for (std::uint32_t head = 0; head < facts_.geometry.kv_heads; ++head) {
        std::int64_t before = -1;
        for (std::uint32_t row = 0; row < layer.rows_of(head); ++row, ++at) {
            std::int64_t const position = values[at];
            if (position <= before || position >= facts_.prompt_tokens)
                return corrupt(fmt::format("{}: head {} has position {} after {}, of {} tokens",
                                           layer.positions.name, head, position, before,
                                           facts_.prompt_tokens));
            before = position;
        }
    }
    return values;
}

Result<std::vector<std::int32_t>> TensorCache::refined(LayerTensors const& layer) const {
    if (layer.refined.tensor == nullptr) return std::vector<std::int32_t>();
    auto values = read_elements<std::int32_t>(*layer.refined.tensor);
    auto const rows = layer.keys.tensor->bytes.size() / quantised_->row_bytes();
    std::int64_t before = -1;
    for (std::int64_t const row : values) {
        if (row <= before || row >= static_cast<std::int64_t>(rows))
            return corrupt(
                fmt::format("{}: row {} after {}, of {}", layer.refined.name, row, before, rows));
        before = row;
    }
    return values;
}

bool TensorCache::unpack(NamedTensor const& tensor,
                         NamedTensor const& rest,
                         std::span<std::int32_t const> refined,
                         std::vector<std::byte>& rows) const {
    auto const packed = tensor.tensor->bytes;
    auto const dtype = facts_.geometry.dtype;
    std::size_t const one = quantised_->row_bytes();
    std::size_t const bytes = facts_.geometry.row_bytes();
    rows.resize(packed.size() / one * bytes);
    bool finite = quantised_->unpack(packed, {}, dtype, rows);
    for (std::size_t at = 0; at < refined.size(); ++at) {
        auto const row = static_cast<std::size_t>(refined[at]);
        auto const more = rest.tensor->bytes.subspan(at * one, one);
        finite = quantised_->unpack(packed.subspan(row * one, one), more, dtype,
                                    std::span(rows).subspan(row * bytes, bytes)) &&
                 finite;
    }
    return finite;
}

Result<SavedLayer> TensorCache::layer(std::uint32_t index) const {
    LayerTensors const& layer = layers_.at(index);
    Geometry const& geometry = facts_.geometry;
    bool const ragged = !layer.head_rows.empty();
    std::uint32_t const heads = ragged ? 1 : geometry.kv_heads;
    std::uint32_t const rows = ragged ? layer.head_rows.back() : layer.rows;
    auto found = positions(layer);
    if (!found) return located(file_.path, found.error());
    auto const finer = refined(layer);
    if (!finer) return located(file_.path, finer.error());

    auto const held = std::make_shared<std::vector<std::vector<std::byte>>>();
    held->reserve(4);  // What is in it stays where it is.
    auto const view = [&](NamedTensor const& tensor, NamedTensor const& rest,
                          std::uint32_t tokens) {
        if (quantised_) {
            unpack(tensor, rest, finer.value(), held->emplace_back());
            return dense_rows(held->back().data(), geometry.dtype, heads, tokens,
                              geometry.head_dim);
        }
        return rows_in(*tensor.tensor, geometry.dtype, heads, tokens, geometry.head_dim, *held);
    };
    SavedLayer saved;
    std::uint32_t const room = layer.room == 0 ? rows : layer.room;
    saved.keys = view(layer.keys, layer.keys_rest, room);
    saved.values = view(layer.values, layer.values_rest, room);
    saved.keys.tokens = saved.values.tokens = rows;  // What is behind them are not tokens.
    if (layer.queries.tensor != nullptr)
        saved.queries = rows_in(*layer.queries.tensor, geometry.dtype, geometry.q_heads,
                                facts_.query_rows, geometry.head_dim, *held);
    saved.sink_logits = facts_.sinks(index);
    if (layer.scores.tensor != nullptr)
        saved.scores = rows_in(*layer.scores.tensor, Dtype::F32, geometry.kv_heads,
                               facts_.prompt_tokens, 1, *held);
    saved.head_rows = layer.head_rows;
    saved.positions = std::move(found).value();
    saved.hold = held;
    return saved;
}

Result<void> TensorCache::verify_tensor(NamedTensor const& tensor, bool numbers) const {
    if (tensor.tensor == nullptr) return {};
    auto const crc = crcs_.find(tensor.name);
    auto const checked = check_tensor(tensor, numbers, crc == crcs_.end() ? nullptr : &crc->second);
    if (!checked) return located(file_.path, checked.error());
    return {};
}

Result<void> TensorCache::verify_scales(LayerTensors const& layer) const {
    auto const finer = refined(layer);
    if (!finer) return located(file_.path, finer.error());
    std::vector<std::byte> rows;
    auto const finite = [&](NamedTensor const& tensor, NamedTensor const& rest) -> Result<void> {
        if (unpack(tensor, rest, finer.value(), rows)) return {};
        return located(file_.path, corrupt(tensor.name +
                                           ": an element is a NaN or an infinity once it is read"));
    };
    DKV_TRY(finite(layer.keys, layer.keys_rest));
    return finite(layer.values, layer.values_rest);
}

Result<void> TensorCache::verify(std::uint32_t index) const {
    LayerTensors const& layer = layers_.at(index);
    for (NamedTensor const* tensor : {&layer.keys, &layer.values, &layer.queries})
        DKV_TRY(verify_tensor(*tensor, true));
    for (NamedTensor const* tensor : {&layer.refined, &layer.keys_rest, &layer.values_rest})
        DKV_TRY(verify_tensor(*tensor, false));
    if (quantised_) DKV_TRY(verify_scales(layer));
    DKV_TRY(verify_tensor(layer.positions, false));
    DKV_TRY(verify_tensor(layer.head_offsets, false));
    DKV_TRY(verify_tensor(layer.sink_logits, false));
    DKV_TRY(verify_tensor(layer.scores, true));
    auto const ascending = positions(layer);
    if (!ascending) return located(file_.path, ascending.error());
    if (index > 0) return {};
    // What belongs to no layer is checked with the first.
    return verify_tensor({"tokens", file_.find("tokens")}, false);
}

}  // namespace dkv
