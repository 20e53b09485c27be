// Rows inside a region, as an engine describes them: checked before a kernel sees a pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/tensor_view.h"
#include "sidecar/memory/region.h"

namespace dkv {

/// [heads, tokens, head_dim] in a region; strides count elements.
struct RowsAt {
    std::uint64_t region = 0;  ///< As the region table numbers it.
    std::uint64_t offset = 0;  ///< Bytes from the start of the region.
    Dtype dtype = Dtype::F32;
    std::uint32_t heads = 0;
    std::uint32_t tokens = 0;
    std::uint32_t head_dim = 0;
    std::uint64_t head_stride = 0;
    std::uint64_t token_stride = 0;
    std::uint64_t dim_stride = 1;
};

/// The blocks of an engine's cache that tokens lie in, in the tokens' order.
struct BlocksAt {
    std::shared_ptr<std::vector<std::int32_t> const> ids;  ///< Never null; views point into it.
    std::uint64_t stride = 0;                              ///< Elements from a block to the next.
};

/// The rows as a view. It is valid while `region` is mapped.
///
/// Errors: InvalidArgument, naming the rows: "keys end at byte 12345, past the region's 12000"; an
/// offset that is not a multiple of the element's size; no element at all; an extent beyond 64
/// bits; strides with which elements overlap: a small region would pass for a large cache.
Result<RowsView> rows(char const* name, RowsAt const& at, MappedRegion const& region);

/// `block`, which are the rows of block 0, as those of `tokens` tokens in `blocks`. The view is
/// valid while the region is mapped and `blocks.ids` lives.
///
/// Errors: InvalidArgument, naming the rows, when there are more or fewer blocks than the tokens
/// fill, one of them comes twice, one reaches into the next, or one ends past the region.
Result<RowsView> paged(char const* name,
                       RowsView const& block,
                       BlocksAt const& blocks,
                       std::uint32_t tokens,
                       MappedRegion const& region);

/// Reading what was never written would make the system find memory for it, and a sparse file may
/// be of any size. Asked before a layer is worked on.
///
/// Errors: InvalidArgument, with both numbers, when the region has fewer bytes there than the rows,
/// or those of a block.
Result<void> check_written(char const* name, RowsView const& view, MappedRegion const& region);

/// Lets go of this process's pages of the rows.
void drop(RowsView const& view, MappedRegion const& region) noexcept;

}  // namespace dkv
