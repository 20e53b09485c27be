// Where rows lie in the two buffers that an engine lends for writing. The sidecar writes by these
// rules and the SDK reads by them, so only lengths travel on the wire.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/geometry.h"

namespace dkv {

/// Staging: one slot per layer, one segment per KV head, each segment on its own pages, so that a
/// trimmed layer gives its tail back. Segment = up to `rows_max` rows: the window's rows first, in
/// position order, then the prefix rows in rank order (best first): trimming cuts the tail.
///
///   slot(layer) = K segments [kv_heads] · V segments [kv_heads]
struct StagingLayout {
    Geometry geometry;
    std::uint32_t rows_max = 0;  ///< Window + the most prefix rows a head may stage.

    std::uint64_t segment_bytes() const noexcept;  ///< A multiple of the page size.
    std::uint64_t slot_bytes() const noexcept;
    std::uint64_t region_bytes() const noexcept;
    std::uint64_t keys_offset(std::uint32_t layer, std::uint32_t head) const noexcept;
    std::uint64_t values_offset(std::uint32_t layer, std::uint32_t head) const noexcept;
};

/// Destination: layers one after another without gaps but for 64-byte alignment; in each the K rows
/// of head 0, head 1, …, then the V rows in the same order, then the positions (i32) in the same
/// order. Rows are position-sorted, the window last. Lengths may differ per layer and KV head.
struct PackedLayer {
    std::uint64_t keys_offset = 0;         ///< From the start of the region, 64-byte aligned.
    std::uint64_t values_offset = 0;       ///< Likewise.
    std::uint64_t positions_offset = 0;    ///< Likewise; i32 per row.
    std::uint64_t end_offset = 0;          ///< Where the next layer begins.
    std::vector<std::uint32_t> head_rows;  ///< [kv_heads + 1], running sum of the lengths.
};

/// The layer whose heads keep `lengths` [kv_heads] rows, laid down from `begin_offset`.
PackedLayer packed_layer(Geometry const& geometry,
                         std::span<std::uint32_t const> lengths,
                         std::uint64_t begin_offset);

/// An upper bound for the bytes of a destination that keeps `rows_total` rows over all layers and
/// heads, however they fall.
std::uint64_t packed_bytes_max(Geometry const& geometry, std::uint64_t rows_total) noexcept;

}  // namespace dkv
