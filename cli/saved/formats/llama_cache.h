// An opened llama.cpp sequence: its rows as views into the mapping.
#pragma once

#include "cli/saved/formats/saved_cache.h"
#include "protocol/container/llama_layout.h"
#include "protocol/container/mapped_file.h"

namespace dkv {

class LlamaCache final : public SavedCache {
public:
    /// Errors: those of parse_llama(); InvalidArgument for KV heads that are not known or do not
    /// divide a row. Messages do not name the path.
    static Result<std::unique_ptr<LlamaCache>> open(MappedFile mapped,
                                                    std::filesystem::path const& path,
                                                    OpenOptions const& options);

    LlamaCache(MappedFile mapped, std::filesystem::path path)
        : mapped_(std::move(mapped)), path_(std::move(path)) {}

    Result<SavedLayer> layer(std::uint32_t index) const override;
    /// Its rows as they are stored, for moving them: of a quantised head the two bytes of an
    /// "element" mean nothing by themselves.
    SavedLayer stored(std::uint32_t index) const;
    Result<void> verify(std::uint32_t layer) const override;
    Result<void> check_unchanged() const override { return mapped_.check_unchanged(); }
    /// Rows that are dequantised are not in the mapping.
    std::span<std::byte const> mapped() const noexcept override {
        return layout_.is_plain() ? mapped_.bytes() : std::span<std::byte const>();
    }

    std::span<std::byte const> bytes() const noexcept { return mapped_.bytes(); }
    LlamaLayout const& layout() const noexcept { return layout_; }

private:
    Result<void> describe(OpenOptions const& options);
    Result<void> describe_rows();
    Result<void> order_cells();
    std::uint64_t row_bytes(LlamaRows const& rows) const noexcept;
    RowsView stored_view(LlamaRows const& rows, std::byte const* data, bool transposed) const;
    void bring_together(LlamaRows const& rows,
                        std::byte const* source,
                        bool transposed,
                        std::byte* target) const;
    RowsView as_f32(LlamaRows const& rows, RowsView const& view, std::span<float> out) const;
    Result<void> verify_part(char const* part,
                             std::uint32_t layer,
                             LlamaRows const& rows,
                             std::uint64_t offset) const;

    MappedFile mapped_;
    std::filesystem::path path_;
    LlamaLayout layout_;
    std::vector<std::uint32_t> order_;     // Cells by position; empty: they are in that order.
    std::vector<std::int32_t> positions_;  // Ascending; empty: 0, 1, 2, …
};

}  // namespace dkv
