#include "protocol/base/kv_layout.h"

#include "protocol/base/assert.h"

namespace dkv {
namespace {

constexpr std::uint64_t kPageBytes = 4096;  // Holes are punched in pages of the engine's machine.
constexpr std::uint64_t kAlignment = 64;    // A cache line, and any vector load.
constexpr std::uint64_t kPositionBytes = 4;

constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) noexcept {
    return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

std::uint64_t StagingLayout::segment_bytes() const noexcept {
    return align_up(rows_max * geometry.row_bytes(), kPageBytes);
}

std::uint64_t StagingLayout::slot_bytes() const noexcept {
    return std::uint64_t{2} * geometry.kv_heads * segment_bytes();
}

std::uint64_t StagingLayout::region_bytes() const noexcept {
    return geometry.layers * slot_bytes();
}

std::uint64_t StagingLayout::keys_offset(std::uint32_t layer, std::uint32_t head) const noexcept {
    return layer * slot_bytes() + head * segment_bytes();
}

std::uint64_t StagingLayout::values_offset(std::uint32_t layer, std::uint32_t head) const noexcept {
    return keys_offset(layer, geometry.kv_heads + head);
}

PackedLayer packed_layer(Geometry const& geometry,
                         std::span<std::uint32_t const> lengths,
                         std::uint64_t begin_offset) {
    DKV_ASSERT(lengths.size() == geometry.kv_heads);
    PackedLayer layer;
    layer.head_rows.assign(1, 0);
    for (std::uint32_t const length : lengths)
        layer.head_rows.push_back(layer.head_rows.back() + length);

    std::uint64_t const rows = layer.head_rows.back();
    layer.keys_offset = align_up(begin_offset, kAlignment);
    layer.values_offset = align_up(layer.keys_offset + rows * geometry.row_bytes(), kAlignment);
    layer.positions_offset =
        align_up(layer.values_offset + rows * geometry.row_bytes(), kAlignment);
    layer.end_offset = layer.positions_offset + rows * kPositionBytes;
    return layer;
}

std::uint64_t packed_bytes_max(Geometry const& geometry, std::uint64_t rows_total) noexcept {
    return rows_total * (2 * geometry.row_bytes() + kPositionBytes) +
           std::uint64_t{3} * geometry.layers * (kAlignment - 1);
}

}  // namespace dkv
