#include "sidecar/memory/rows.h"

#include <algorithm>
#include <limits>
#include <string>

namespace dkv {
namespace {

Error wrong_rows(char const* name, std::string const& why) {
    return {ErrorCode::InvalidArgument, std::string(name) + " " + why};
}

std::size_t offset_in(MappedRegion const& region, RowsView const& view) noexcept {
    return static_cast<std::size_t>(view.data - region.bytes().data());
}

/// Of the blocks of a table, what one of them holds.
RowsView block_of(RowsView const& view, std::uint32_t index) noexcept {
    RowsView block = view;
    block.blocks = nullptr;
    block.data = view.row(0, index * view.block_tokens);
    block.tokens = std::min(view.block_tokens, view.tokens - index * view.block_tokens);
    return block;
}

Result<void> check_there(std::string const& name,
                         RowsView const& view,
                         MappedRegion const& region) {
    auto const bytes = view.row_bytes() * view.heads * view.tokens;
    auto const there = region.bytes_there(offset_in(region, view), DKV_TRY(extent_bytes(view)));
    if (there >= bytes) return {};
    return Error{ErrorCode::InvalidArgument,
                 name + " have " + std::to_string(bytes) + " bytes, of which the region has " +
                     std::to_string(there) + ": the rest was never written"};
}

}  // namespace

Result<RowsView> rows(char const* name, RowsAt const& at, MappedRegion const& region) {
    auto const wrong = [name](std::string const& why) { return wrong_rows(name, why); };
    if (at.heads == 0 || at.tokens == 0 || at.head_dim == 0)
        return wrong("have the shape [" + std::to_string(at.heads) + ", " +
                     std::to_string(at.tokens) + ", " + std::to_string(at.head_dim) +
                     "], which holds nothing");
    std::size_t const element = bytes_of(at.dtype);
    if (at.offset % element != 0)
        return wrong("begin at byte " + std::to_string(at.offset) +
                     ", which is not a multiple of " + std::to_string(element));
    RowsView view{.data = nullptr,
                  .dtype = at.dtype,
                  .place = region.place(),
                  .heads = at.heads,
                  .tokens = at.tokens,
                  .head_dim = at.head_dim,
                  .head_stride = at.head_stride,
                  .token_stride = at.token_stride,
                  .dim_stride = at.dim_stride};
    auto const extent = extent_bytes(view);
    if (!extent || extent.value() > std::numeric_limits<std::uint64_t>::max() - at.offset)
        return wrong("have an offset or strides that do not fit in 64 bits");
    std::uint64_t const end = at.offset + extent.value();
    if (end > region.bytes().size())
        return wrong("end at byte " + std::to_string(end) + ", past the region's " +
                     std::to_string(region.bytes().size()));
    if (may_overlap(view))
        return wrong("have strides [" + std::to_string(at.head_stride) + ", " +
                     std::to_string(at.token_stride) + ", " + std::to_string(at.dim_stride) +
                     "], with which elements of the shape [" + std::to_string(at.heads) + ", " +
                     std::to_string(at.tokens) + ", " + std::to_string(at.head_dim) + "] overlap");
    view.data = region.bytes().data() + at.offset;
    return view;
}

Result<RowsView> paged(char const* name,
                       RowsView const& block,
                       BlocksAt const& blocks,
                       std::uint32_t tokens,
                       MappedRegion const& region) {
    auto const& ids = *blocks.ids;
    RowsView view = block;
    view.tokens = tokens;
    view.blocks = ids.data();
    view.block_tokens = block.tokens;
    view.block_stride = blocks.stride;
    if (tokens == 0 || ids.size() != view.table_size())
        return wrong_rows(name, "of " + std::to_string(tokens) + " tokens do not lie in " +
                                    std::to_string(ids.size()) + " blocks of " +
                                    std::to_string(block.tokens));
    auto sorted = ids;
    std::ranges::sort(sorted);
    if (auto const twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
        return wrong_rows(name, "lie in block " + std::to_string(*twice) + " twice");
    if (sorted.front() < 0)
        return wrong_rows(name, "lie in block " + std::to_string(sorted.front()));
    view.block_count = static_cast<std::uint32_t>(sorted.back()) + 1;
    auto const offset = offset_in(region, view);
    auto const extent = extent_bytes(view);
    if (!extent || extent.value() > region.bytes().size() - offset)
        return wrong_rows(name, "have block " + std::to_string(sorted.back()) + ", which ends at " +
                                    (extent ? "byte " + std::to_string(offset + extent.value())
                                            : std::string("no 64-bit byte")) +
                                    ", past the region's " + std::to_string(region.bytes().size()));
    // Blocks outermost: so each is looked at once, and not again between the rows of another.
    auto const element = bytes_of(view.dtype);
    if (DKV_TRY(extent_bytes(block)) / element > blocks.stride && ids.size() > 1)
        return wrong_rows(name, "have blocks " + std::to_string(blocks.stride) +
                                    " elements apart, and each of them reaches further");
    return view;
}

Result<void> check_written(char const* name, RowsView const& view, MappedRegion const& region) {
    if (!view.paged()) return check_there(name, view, region);
    for (std::uint32_t index = 0; index < view.table_size(); ++index)
        DKV_TRY(check_there(std::string(name) + " in block " + std::to_string(view.blocks[index]),
                            block_of(view, index), region));
    return {};
}

void drop(RowsView const& view, MappedRegion const& region) noexcept {
    if (view.data == nullptr) return;
    auto const extent = extent_bytes(view);
    if (!extent) return;
    region.drop(offset_in(region, view), extent.value());
}

}  // namespace dkv
