// A layer's prefix tokens as the policy prefers them, and what of the attention they hold.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace dkv {

/// Prefix tokens of one KV head, the best first: a prefix of the list is what a smaller budget
/// keeps.
struct RankedHead {
    std::vector<std::int32_t> ids;
    /// Share of the window's attention on each of `ids`.
    std::vector<float> mass;
    /// The share on the whole prefix; the window, which is always kept, has the rest of 1.
    double prefix_mass = 0;
};

struct RankedLayer {
    std::vector<RankedHead> heads;
    bool mass_known = false;

    /// Cuts each head to its budget. Whether that dropped anything.
    bool trim(std::span<std::uint32_t const> budgets);

    /// Rows per head, `window` included.
    std::vector<std::uint32_t> lengths(std::uint32_t window) const;

    /// The share of the window's attention on the window and the best b tokens of each head, for b
    /// from 0 to as many as it has. The mass is known. [heads][ids + 1]
    std::vector<std::vector<double>> mass_curves() const;

    /// The share of the window's attention that falls on kept tokens, averaged over the heads;
    /// nothing when the mass is unknown.
    std::optional<float> mass_kept() const;
};

/// `ids` [Σ lengths], head after head; `mass` [heads, prefix] over the whole prefix, or empty.
RankedLayer ranked_layer(std::span<std::int32_t const> ids,
                         std::span<std::uint32_t const> lengths,
                         std::span<float const> mass,
                         std::size_t prefix);

}  // namespace dkv
