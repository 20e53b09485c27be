// A cache in one safetensors file: what dkv's own, HF's and mlx-lm's files have in common.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "cli/saved/formats/words.h"
#include "protocol/container/quantised_rows.h"
#include "protocol/container/safetensors.h"

namespace dkv {

/// A container, opened: the table is of the mapping's bytes.
struct TensorFile {
    MappedFile mapped;
    std::filesystem::path path;
    TensorTable table;

    /// Errors: CorruptData, beginning with the path.
    static Result<TensorFile> open(MappedFile mapped, std::filesystem::path const& path);

    FileTensor const* find(std::string_view name) const;
    /// Errors: CorruptData "NAME is missing".
    Result<FileTensor const*> need(std::string_view name) const;
};

struct NamedTensor {
    std::string name;
    FileTensor const* tensor = nullptr;  ///< nullptr: none.

    std::string shape() const;  ///< "F32 [2, 5, 3]"
};

/// Where one layer's tensors are.
struct LayerTensors {
    NamedTensor keys;
    NamedTensor values;
    NamedTensor queries;
    NamedTensor positions;
    NamedTensor head_offsets;
    NamedTensor sink_logits;
    NamedTensor scores;
    NamedTensor refined;                   ///< Which rows are; the next two have as many.
    NamedTensor keys_rest;                 ///< What refines them.
    NamedTensor values_rest;               ///< Likewise.
    std::uint32_t rows = 0;                ///< Of every head.
    std::uint32_t room = 0;                ///< Rows that a head has room for; 0: `rows`.
    std::vector<std::uint32_t> head_rows;  ///< As in SavedLayer; `rows` is not read then.

    std::uint32_t rows_of(std::uint32_t head) const {
        return head_rows.empty() ? rows : head_rows[head + 1] - head_rows[head];
    }
};

class TensorCache final : public SavedCache {
public:
    /// `facts` lacks lengths, compacted and file_bytes: they follow from the layers. Of the layers
    /// the shapes are checked, but not the positions' values.
    /// `quantised`: how K and V lie; nothing: as numbers of the geometry's dtype.
    TensorCache(TensorFile file,
                CacheFacts facts,
                std::vector<LayerTensors> layers,
                std::map<std::string, std::uint32_t, std::less<>> crcs = {},
                std::optional<QuantisedRows> quantised = {});

    Result<SavedLayer> layer(std::uint32_t index) const override;
    Result<void> verify(std::uint32_t index) const override;
    Result<void> check_unchanged() const override { return file_.mapped.check_unchanged(); }
    /// Rows that are dequantised are not in the mapping.
    std::span<std::byte const> mapped() const noexcept override {
        return quantised_ ? std::span<std::byte const>() : file_.mapped.bytes();
    }

private:
    Result<std::vector<std::int32_t>> positions(LayerTensors const& layer) const;
    Result<void> verify_tensor(NamedTensor const& tensor, bool numbers) const;
    Result<void> verify_scales(LayerTensors const& layer) const;
    Result<std::vector<std::int32_t>> refined(LayerTensors const& layer) const;
    /// Of K or V, with what refines some of its rows; false: a scale is not finite.
    bool unpack(NamedTensor const& tensor,
                NamedTensor const& rest,
                std::span<std::int32_t const> refined,
                std::vector<std::byte>& rows) const;

    TensorFile file_;
    std::vector<LayerTensors> layers_;
    std::map<std::string, std::uint32_t, std::less<>> crcs_;  // By tensor; empty: none.
    std::optional<QuantisedRows> quantised_;
};

/// The elements, wherever they lie. `tensor` is of T's dtype.
template <class T>
std::vector<T> read_elements(FileTensor const& tensor) {
    std::vector<T> values(tensor.bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    return values;
}

/// The tensor's bytes as rows. Where they begin inside an element they are copied into `held`,
/// which outlives the view.
RowsView rows_in(FileTensor const& tensor,
                 Dtype dtype,
                 std::uint32_t heads,
                 std::uint32_t tokens,
                 std::uint32_t head_dim,
                 std::vector<std::vector<std::byte>>& held);

/// Errors: CorruptData, "NAME: element 17 is a NaN or an infinity", "NAME: its CRC-32 is …".
Result<void> check_tensor(NamedTensor const& tensor, bool numbers, std::uint32_t const* crc);

}  // namespace dkv
