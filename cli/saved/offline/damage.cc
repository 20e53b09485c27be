#include "cli/saved/offline/damage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cli/saved/offline/profiles.h"

namespace dkv::offline {
namespace {

bool fits(Profile const& profile, Geometry const& geometry) {
    return profile.layers == geometry.layers &&
           (profile.heads == 1 || profile.heads == geometry.kv_heads);
}

bool fits(Surrogate const& surrogate, Geometry const& geometry) {
    return surrogate.kv_heads == geometry.kv_heads && surrogate.head_dim == geometry.head_dim;
}

/// Softmax of a head's scores in place; one that is not finite counts as nothing.
void to_shares(std::span<float> scores) {
    float best = -std::numeric_limits<float>::infinity();
    for (float const score : scores)
        if (std::isfinite(score)) best = std::max(best, score);
    double sum = 0;
    for (float& score : scores)
        sum += score = std::isfinite(score) ? std::exp(score - best) : 0;
    for (float& score : scores)
        score = sum > 0 ? static_cast<float>(score / sum) : 0;
}

}  // namespace

Damage::Damage(Backend& backend, CacheFacts const& facts, Profile const& profile)
    : backend_(&backend), geometry_(facts.geometry), tokens_(facts.prompt_tokens) {
    for (double const weight : profile.weights)
        weights_.insert(weights_.end(), geometry_.kv_heads / profile.heads, weight);
    double const sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    for (double& weight : weights_)
        weight *= static_cast<double>(weights_.size()) / sum;
}

Result<std::optional<Damage>> Damage::create(Backend& backend,
                                             CacheFacts const& facts,
                                             std::shared_ptr<Profile const> const& profile) {
    if (profile == nullptr || !fits(*profile, facts.geometry)) return std::optional<Damage>();
    Damage damage(backend, facts, *profile);
    if (profile->surrogate && fits(*profile->surrogate, facts.geometry))
        if (auto const readable = in_order_of(facts, *profile); readable)
            damage.scorer_ =
                DKV_TRY(SurrogateScorer::create(backend, readable.value(), facts.prompt_tokens));
    return std::optional<Damage>(std::move(damage));
}

Result<void> Damage::take(SavedLayer const& layer) {
    if (!scorer_) return {};
    std::size_t const count = std::size_t{geometry_.kv_heads} * tokens_;
    auto const index = static_cast<std::uint32_t>(later_.size() / count);
    auto const scores = DKV_TRY(BackendArray<float>::create(*backend_, count));
    DKV_TRY(scorer_->score(index, layer.keys, layer.values, 0, {}, scores.elements()));
    auto shares = DKV_TRY(download<float>(*backend_, scores.elements()));
    for (std::size_t begin = 0; begin < count; begin += tokens_)
        to_shares(std::span(shares).subspan(begin, tokens_));
    later_.insert(later_.end(), shares.begin(), shares.end());
    return {};
}

double Damage::lost_later(std::uint32_t layer, std::uint32_t head, Plan const& plan) const {
    auto const shares = std::span(later_).subspan(
        (std::size_t{layer} * geometry_.kv_heads + head) * tokens_, tokens_);
    auto const window = shares.last(plan.spec().params.window);
    double held = std::accumulate(window.begin(), window.end(), 0.0);
    for (std::int32_t const token : plan.layer(layer).heads[head].ids)
        held += double{shares[static_cast<std::size_t>(token)]};
    return 1 - std::min(held, 1.0);
}

std::vector<double> Damage::of(Plan const& plan) const {
    std::vector<double> damages;
    for (std::uint32_t layer = 0; layer < geometry_.layers; ++layer) {
        auto const window_kept = plan.layer(layer).shares_kept();
        int const known = (window_kept.empty() ? 0 : 1) + (scorer_ ? 1 : 0);
        if (known == 0) return {};
        double damage = 0;
        for (std::uint32_t head = 0; head < geometry_.kv_heads; ++head) {
            double const lost = (window_kept.empty() ? 0 : 1 - window_kept[head]) +
                                (scorer_ ? lost_later(layer, head, plan) : 0);
            damage += weights_[std::size_t{layer} * geometry_.kv_heads + head] * lost / known;
        }
        damages.push_back(damage / geometry_.kv_heads);
    }
    return damages;
}

}  // namespace dkv::offline
