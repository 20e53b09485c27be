#include "sidecar/pipeline/row_lists.h"

#include <algorithm>
#include <numeric>

namespace dkv {
namespace {

/// Appends first, first + 1, …
void append_run(std::vector<std::int32_t>& list, std::uint32_t first, std::uint32_t count) {
    list.resize(list.size() + count);
    std::iota(list.end() - count, list.end(), static_cast<std::int32_t>(first));
}

}  // namespace

std::vector<std::int32_t> staged_rows(RankedLayer const& layer,
                                      std::uint32_t prefix,
                                      std::uint32_t window) {
    std::vector<std::int32_t> rows;
    for (RankedHead const& head : layer.heads) {
        append_run(rows, prefix, window);
        rows.insert(rows.end(), head.ids.begin(), head.ids.end());
    }
    return rows;
}

PackedRows packed_rows(RankedLayer const& layer, std::uint32_t prefix, std::uint32_t window) {
    PackedRows rows;
    std::vector<std::uint32_t> by_position;  // Ranks, the earliest token first.
    for (RankedHead const& head : layer.heads) {
        by_position.resize(head.ids.size());
        std::iota(by_position.begin(), by_position.end(), 0U);
        std::ranges::sort(by_position, {}, [&](std::uint32_t rank) { return head.ids[rank]; });
        for (std::uint32_t const rank : by_position) {
            rows.positions.push_back(head.ids[rank]);
            rows.slots.push_back(static_cast<std::int32_t>(window + rank));
        }
        append_run(rows.positions, prefix, window);
        append_run(rows.slots, 0, window);
    }
    return rows;
}

}  // namespace dkv
