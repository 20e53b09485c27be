// A layer's prefix tokens as the policy prefers them, and what of the attention they hold.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace dkv {

/// Every head's prefix tokens, the best first, as far as anybody may want them. Plans that rank
/// alike look into the same.
struct Ranks {
    std::vector<std::uint32_t> lengths;  ///< [heads]
    std::vector<std::int32_t> ids;       ///< [Σ lengths]
    bool mass_known = false;
    std::vector<float> mass;  ///< Share of the window's attention on each of `ids`, where known.
    /// [heads] the share on the whole prefix; the window, which is always kept, has the rest of 1.
    std::vector<double> prefix_mass;
};

/// `ids` [Σ lengths], head after head; `mass` [heads, prefix] over the whole prefix, or empty.
Ranks make_ranks(std::vector<std::int32_t> ids,
                 std::span<std::uint32_t const> lengths,
                 std::span<float const> mass,
                 std::size_t prefix);

/// Prefix tokens that one KV head keeps, the best first: a prefix of the list is what a smaller
/// budget keeps.
struct RankedHead {
    std::span<std::int32_t const> ids;
    std::span<float const> mass;  ///< Of `ids`; empty where it is unknown.
    double prefix_mass = 0;
};

struct RankedLayer {
    std::vector<RankedHead> heads;
    bool mass_known = false;
    std::shared_ptr<Ranks const> ranks;  ///< What the heads look into.

    /// Cuts each head to its budget. Whether that dropped anything.
    bool trim(std::span<std::uint32_t const> budgets);

    /// Gives each head this many tokens, fewer or more; at most as many as were ranked.
    void resize(std::span<std::uint32_t const> budgets);

    /// Rows per head, `window` included.
    std::vector<std::uint32_t> lengths(std::uint32_t window) const;

    /// The share of the window's attention on the window and the best b tokens of each head, for b
    /// from 0 to as many as it has. The mass is known. [heads][ids + 1]
    std::vector<std::vector<double>> mass_curves() const;

    /// [heads] the share of the window's attention that falls on kept tokens; empty: unknown.
    std::vector<double> shares_kept() const;

    /// The share of the window's attention that falls on kept tokens, averaged over the heads;
    /// nothing when the mass is unknown.
    std::optional<float> mass_kept() const;
};

/// The best of each head. `limits` [heads], each at most as many as were ranked.
RankedLayer best_of(std::shared_ptr<Ranks const> ranks, std::span<std::uint32_t const> limits);

}  // namespace dkv
