// How much a choice of tokens is likely to hurt, without a model: from the cache and its profile.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "sidecar/pipeline/plan.h"
#include "sidecar/pipeline/surrogate_scorer.h"

namespace dkv::offline {

/// The share of attention that a head loses, times the head's weight in the profile. Attention is
/// the window's, where its mass is known, and what the profile's surrogate predicts that later text
/// will give each token; of both, the mean. docs/POLICIES.md says how it ranks policies, and what
/// it does not see.
///
/// Keeps 4 bytes for each token of each KV head.
class Damage {
public:
    /// Nothing where the profile is for another shape. Its surrogate is left out where it cannot
    /// read the file's keys. `backend` outlives it.
    static Result<std::optional<Damage>> create(Backend& backend,
                                                CacheFacts const& facts,
                                                std::shared_ptr<Profile const> const& profile);

    /// Looks at the next layer's rows.
    Result<void> take(SavedLayer const& layer);

    /// [layers], once all are taken; the mean over them is the damage, 0 … 1. Empty where neither
    /// the window's attention nor later text's is known.
    std::vector<double> of(Plan const& plan) const;

private:
    Damage(Backend& backend, CacheFacts const& facts, Profile const& profile);

    double lost_later(std::uint32_t layer, std::uint32_t head, Plan const& plan) const;

    Backend* backend_;
    Geometry geometry_;
    std::uint32_t tokens_;
    std::vector<double> weights_;  // [layers, kv_heads], of mean 1.
    std::optional<SurrogateScorer> scorer_;
    /// [layers, kv_heads, tokens] shares of what later text gives; 1 in each head.
    std::vector<float> later_;
};

}  // namespace dkv::offline
