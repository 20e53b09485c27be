#include "sidecar/memory/rows.h"

#include <limits>
#include <string>

namespace dkv {

Result<RowsView> rows(char const* name, RowsAt const& at, MappedRegion const& region) {
    auto const wrong = [name](std::string const& why) {
        return Error{ErrorCode::InvalidArgument, std::string(name) + " " + why};
    };
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

Result<void> check_written(char const* name, RowsView const& view, MappedRegion const& region) {
    auto const bytes = view.row_bytes() * view.heads * view.tokens;
    auto const extent = DKV_TRY(extent_bytes(view));
    auto const there =
        region.bytes_there(static_cast<std::size_t>(view.data - region.bytes().data()), extent);
    if (there >= bytes) return {};
    return Error{ErrorCode::InvalidArgument,
                 std::string(name) + " have " + std::to_string(bytes) + " bytes, of which the " +
                     "region has " + std::to_string(there) + ": the rest was never written"};
}

void drop(RowsView const& view, MappedRegion const& region) noexcept {
    if (view.data == nullptr) return;
    auto const extent = extent_bytes(view);
    if (!extent) return;
    region.drop(static_cast<std::size_t>(view.data - region.bytes().data()), extent.value());
}

}  // namespace dkv
