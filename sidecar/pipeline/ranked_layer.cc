#include "sidecar/pipeline/ranked_layer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

/// Of the window's attention, when `kept` of it is on kept prefix tokens.
double share_of(RankedHead const& head, double kept) {
    return std::clamp(kept + (1 - head.prefix_mass), 0.0, 1.0);
}

}  // namespace

Ranks make_ranks(std::vector<std::int32_t> ids,
                 std::span<std::uint32_t const> lengths,
                 std::span<float const> mass,
                 std::size_t prefix) {
    DKV_ASSERT(mass.empty() || mass.size() == lengths.size() * prefix);
    Ranks ranks{.lengths = {lengths.begin(), lengths.end()},
                .ids = std::move(ids),
                .mass_known = !mass.empty(),
                .mass = {},
                .prefix_mass = std::vector<double>(lengths.size(), 0)};
    DKV_ASSERT(ranks.ids.size() == std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}));
    if (mass.empty()) return ranks;
    ranks.mass.reserve(ranks.ids.size());
    auto id = ranks.ids.begin();
    for (std::size_t head = 0; head < lengths.size(); ++head) {
        auto const of_head = mass.subspan(head * prefix, prefix);
        for (auto const end = id + lengths[head]; id != end; ++id)
            ranks.mass.push_back(of_head[static_cast<std::size_t>(*id)]);
        ranks.prefix_mass[head] = std::accumulate(of_head.begin(), of_head.end(), 0.0);
    }
    return ranks;
}

bool RankedLayer::trim(std::span<std::uint32_t const> budgets) {
    DKV_ASSERT(budgets.size() == heads.size());
    bool trimmed = false;
    for (std::size_t i = 0; i < heads.size(); ++i) {
        DKV_ASSERT(budgets[i] <= heads[i].ids.size());
        trimmed = trimmed || budgets[i] < heads[i].ids.size();
    }
    resize(budgets);
    return trimmed;
}

void RankedLayer::resize(std::span<std::uint32_t const> budgets) {
    DKV_ASSERT(budgets.size() == heads.size());
    std::size_t begin = 0;
    for (std::size_t i = 0; i < heads.size(); ++i) {
        DKV_ASSERT(budgets[i] <= ranks->lengths[i]);
        heads[i].ids = std::span(ranks->ids).subspan(begin, budgets[i]);
        if (mass_known) heads[i].mass = std::span(ranks->mass).subspan(begin, budgets[i]);
        begin += ranks->lengths[i];
    }
}

std::vector<std::uint32_t> RankedLayer::lengths(std::uint32_t window) const {
    std::vector<std::uint32_t> lengths;
    for (RankedHead const& head : heads)
        lengths.push_back(window + static_cast<std::uint32_t>(head.ids.size()));
    return lengths;
}

std::vector<std::vector<double>> RankedLayer::mass_curves() const {
    DKV_ASSERT(mass_known);
    std::vector<std::vector<double>> curves;
    for (RankedHead const& head : heads) {
        double kept = 0;
        auto& curve = curves.emplace_back(1, share_of(head, kept));
        for (float const mass : head.mass)
            curve.push_back(share_of(head, kept += mass));
    }
    return curves;
}

std::vector<double> RankedLayer::shares_kept() const {
    std::vector<double> shares;
    if (mass_known)
        for (RankedHead const& head : heads)
            shares.push_back(
                share_of(head, std::accumulate(head.mass.begin(), head.mass.end(), 0.0)));
    return shares;
}

std::optional<float> RankedLayer::mass_kept() const {
    if (!mass_known) return std::nullopt;
    auto const shares = shares_kept();
    double const sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    return static_cast<float>(sum / static_cast<double>(shares.size()));
}

RankedLayer best_of(std::shared_ptr<Ranks const> ranks, std::span<std::uint32_t const> limits) {
    RankedLayer layer;
    layer.mass_known = ranks->mass_known;
    for (double const prefix_mass : ranks->prefix_mass)
        layer.heads.push_back({.ids = {}, .mass = {}, .prefix_mass = prefix_mass});
    layer.ranks = std::move(ranks);
    layer.resize(limits);
    return layer;
}

}  // namespace dkv
