#include "sidecar/pipeline/ranked_layer.h"

#include <algorithm>
#include <numeric>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

/// Of the window's attention, when `kept` of it is on kept prefix tokens.
double share_of(RankedHead const& head, double kept) {
    return std::clamp(kept + (1 - head.prefix_mass), 0.0, 1.0);
}

}  // namespace

bool RankedLayer::trim(std::span<std::uint32_t const> budgets) {
    DKV_ASSERT(budgets.size() == heads.size());
    bool trimmed = false;
    for (std::size_t i = 0; i < heads.size(); ++i) {
        RankedHead& head = heads[i];
        DKV_ASSERT(budgets[i] <= head.ids.size());
        trimmed = trimmed || budgets[i] < head.ids.size();
        head.ids.resize(budgets[i]);
        if (mass_known) head.mass.resize(budgets[i]);
    }
    return trimmed;
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

std::optional<float> RankedLayer::mass_kept() const {
    if (!mass_known) return std::nullopt;
    double sum = 0;
    for (RankedHead const& head : heads)
        sum += share_of(head, std::accumulate(head.mass.begin(), head.mass.end(), 0.0));
    return static_cast<float>(sum / static_cast<double>(heads.size()));
}

RankedLayer ranked_layer(std::span<std::int32_t const> ids,
                         std::span<std::uint32_t const> lengths,
                         std::span<float const> mass,
                         std::size_t prefix) {
    DKV_ASSERT(mass.empty() || mass.size() == lengths.size() * prefix);
    RankedLayer layer{.heads = {}, .mass_known = !mass.empty()};
    for (std::uint32_t const length : lengths) {
        RankedHead head;
        head.ids.assign(ids.begin(), ids.begin() + length);
        ids = ids.subspan(length);
        if (layer.mass_known) {
            auto const of_head = mass.first(prefix);
            mass = mass.subspan(prefix);
            for (std::int32_t const id : head.ids)
                head.mass.push_back(of_head[static_cast<std::size_t>(id)]);
            head.prefix_mass = std::accumulate(of_head.begin(), of_head.end(), 0.0);
        }
        layer.heads.push_back(std::move(head));
    }
    DKV_ASSERT(ids.empty());
    return layer;
}

}  // namespace dkv
