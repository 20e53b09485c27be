#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"

namespace dkv {

/// Copies chosen rows of a cache. Every head has its own number of rows, in its own order.
///
///   source        [heads, tokens, head_dim]   any dtype, strides and blocks; read
///   ids           [Σ lengths]                 i32, head after head, each in [0, tokens)
///   lengths       [heads]                     rows per head
///   out           bytes                       written: head h's rows, dense, from out_offsets[h]
///   out_offsets   [heads]                     bytes from the start of out
///
/// `out` must not overlap `source`, nor one head's rows another's. Ids are checked before anything
/// is written: a row outside the source is refused, not read.
struct GatherArgs {
    RowsView source;
    std::span<std::int32_t const> ids;
    std::span<std::uint32_t const> lengths;
    std::span<std::byte> out;
    std::span<std::uint64_t const> out_offsets;
};

/// Checks all but the ids, and those of blocks, which may lie in a device's memory: each backend
/// checks those itself.
///
/// Errors: InvalidArgument when a shape disagrees with the table above, a head's rows do not fit in
/// `out`, or two ranges overlap.
Result<void> check(GatherArgs const& args);

}  // namespace dkv
