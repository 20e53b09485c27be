// How much a choice of tokens is likely to hurt, without a model: from the cache and its profile.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/attention_error.h"
#include "sidecar/pipeline/backend_array.h"
#include "sidecar/policy/profile.h"

namespace dkv::offline {

/// The share of attention that a head loses, times the head's weight in the profile. Attention is
/// the window's, where its mass is known, and what the profile's surrogate predicts that later text
/// will give each token; of both, the mean. docs/POLICIES.md says how it ranks policies, and what
/// it does not see.
class Damage {
public:
    /// Nothing where the profile is for another shape. Its surrogate is left out where it cannot
    /// read the file's keys. `backend` outlives it.
    static Result<std::optional<Damage>> create(Backend& backend,
                                                CacheFacts const& facts,
                                                std::shared_ptr<Profile const> const& profile);

    /// For each choice of a layer's tokens; the mean over the layers is the damage, 0 … 1.
    ///
    ///   window_kept  [kept] of [kv_heads] shares of the window's attention; empty: unknown
    ///
    /// Nothing where neither the window's attention nor later text's is known.
    Result<std::vector<std::optional<double>>> of(std::uint32_t index,
                                                  SavedLayer const& layer,
                                                  std::span<KeptTokens const> kept,
                                                  std::span<std::vector<double> const> window_kept);

private:
    Damage(Backend& backend, Geometry const& geometry, std::shared_ptr<Profile> profile)
        : backend_(&backend), geometry_(geometry), profile_(std::move(profile)) {}

    Result<void> make_room(std::uint32_t tokens);
    /// [kv_heads, tokens] shares of what later text gives, which add up to 1 in each head.
    Result<std::vector<double>> later_shares(std::uint32_t index, SavedLayer const& layer);
    double weight(std::uint32_t layer, std::uint32_t head) const;

    Backend* backend_;
    Geometry geometry_;
    std::shared_ptr<Profile> profile_;
    double weight_sum_ = 0;  // Over layers and heads.
    std::uint32_t tokens_ = 0;
    BackendArray<float> weights_;
    BackendArray<float> turns_;
    BackendArray<float> scores_;
};

}  // namespace dkv::offline
