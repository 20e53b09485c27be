#include "cli/saved/offline/refined.h"

#include <algorithm>
#include <cmath>

#include "protocol/base/assert.h"

namespace dkv::offline {
namespace {

std::uint32_t refined_of(double share, std::size_t length) {
    return static_cast<std::uint32_t>(share * static_cast<double>(length));
}

}  // namespace

double kept_in_bytes_of(double rows) {
    // kept + kRefinedShare · kept² = rows
    return (std::sqrt(1 + 4 * kRefinedShare * rows) - 1) / (2 * kRefinedShare);
}

std::vector<std::uint32_t> refined_counts(double share,
                                          std::span<std::uint32_t const> lengths,
                                          std::uint32_t layers) {
    DKV_ASSERT(layers > 0 && lengths.size() % layers == 0);
    std::size_t const heads = lengths.size() / layers;
    std::vector<std::uint32_t> counts(layers);
    for (std::size_t at = 0; at < lengths.size(); ++at)
        counts[at / heads] += refined_of(share, lengths[at]);
    return counts;
}

std::vector<std::int32_t> refined_rows(double share, std::span<HeadToRefine const> heads) {
    std::vector<std::int32_t> rows;
    std::int32_t begin = 0;
    std::vector<bool> refined;
    for (HeadToRefine const& head : heads) {
        std::uint32_t left = refined_of(share, head.positions.size());
        refined.assign(head.positions.size(), false);
        for (std::int32_t const position : head.ranked) {
            if (left == 0) break;
            auto const at = std::ranges::lower_bound(head.positions, position);
            DKV_ASSERT(at != head.positions.end() && *at == position);
            refined[static_cast<std::size_t>(at - head.positions.begin())] = true;
            --left;
        }
        for (std::size_t at = refined.size(); left > 0; --left) {
            do
                --at;
            while (refined[at]);
            refined[at] = true;
        }
        for (std::size_t at = 0; at < refined.size(); ++at)
            if (refined[at]) rows.push_back(begin + static_cast<std::int32_t>(at));
        begin += static_cast<std::int32_t>(head.positions.size());
    }
    return rows;
}

}  // namespace dkv::offline
