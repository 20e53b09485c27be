#include "cli/saved/offline/damage.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

/// Softmax of a head's scores; one that is not finite counts as nothing.
void to_shares(std::span<float const> scores, std::span<double> shares) {
    float best = -std::numeric_limits<float>::infinity();
    for (float const score : scores)
        if (std::isfinite(score)) best = std::max(best, score);
    double sum = 0;
    for (std::size_t i = 0; i < scores.size(); ++i)
        sum += shares[i] = std::isfinite(scores[i]) ? std::exp(double{scores[i]} - best) : 0;
    for (double& share : shares)
        share = sum > 0 ? share / sum : 0;
}

template <class T>
Result<BackendArray<float>> uploaded(Backend& backend, T const& values) {
    auto array = DKV_TRY(BackendArray<float>::create(backend, values.size()));
    DKV_TRY(
        backend.upload(std::as_bytes(std::span(values)), std::as_writable_bytes(array.elements())));
    return array;
}

}  // namespace

Result<std::optional<Damage>> Damage::create(Backend& backend,
                                             CacheFacts const& facts,
                                             std::shared_ptr<Profile const> const& profile) {
    if (profile == nullptr || !fits(*profile, facts.geometry)) return std::optional<Damage>();
    auto used = std::make_shared<Profile>(*profile);
    if (used->surrogate && fits(*used->surrogate, facts.geometry)) {
        auto const readable = in_order_of(facts, *used);
        used->surrogate = readable ? readable.value() : nullptr;
    } else {
        used->surrogate = nullptr;
    }
    Damage damage(backend, facts.geometry, std::move(used));
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer)
        for (std::uint32_t head = 0; head < facts.geometry.kv_heads; ++head)
            damage.weight_sum_ += damage.weight(layer, head);
    DKV_TRY(damage.make_room(facts.prompt_tokens));
    return std::optional<Damage>(std::move(damage));
}

Result<void> Damage::make_room(std::uint32_t tokens) {
    tokens_ = tokens;
    if (!profile_->surrogate) return {};
    Surrogate const& surrogate = *profile_->surrogate;
    weights_ = DKV_TRY(uploaded(*backend_, surrogate.weights));
    turns_ = DKV_TRY(uploaded(*backend_, dkv::turns(surrogate.frequencies, tokens)));
    scores_ =
        DKV_TRY(BackendArray<float>::create(*backend_, std::size_t{geometry_.kv_heads} * tokens));
    return {};
}

double Damage::weight(std::uint32_t layer, std::uint32_t head) const {
    return profile_
        ->weights[std::size_t{layer} * profile_->heads + (profile_->heads == 1 ? 0 : head)];
}

Result<std::vector<double>> Damage::later_shares(std::uint32_t index, SavedLayer const& layer) {
    Surrogate const& surrogate = *profile_->surrogate;
    std::size_t const count = surrogate.kv_heads * surrogate.features();
    DKV_TRY(backend_->surrogate({.keys = layer.keys,
                                 .values = layer.values,
                                 .weights = weights_.elements().subspan(index * count, count),
                                 .turns = turns_.elements(),
                                 .scores = scores_.elements(),
                                 .window = 0,
                                 .pairs = static_cast<std::uint32_t>(surrogate.frequencies.size()),
                                 .interleaved = surrogate.interleaved}));
    auto const scores = DKV_TRY(download<float>(*backend_, scores_.elements()));
    std::vector<double> shares(scores.size());
    for (std::size_t begin = 0; begin < scores.size(); begin += tokens_)
        to_shares(std::span(scores).subspan(begin, tokens_),
                  std::span(shares).subspan(begin, tokens_));
    return shares;
}

Result<std::vector<std::optional<double>>> Damage::of(
    std::uint32_t index,
    SavedLayer const& layer,
    std::span<KeptTokens const> kept,
    std::span<std::vector<double> const> window_kept) {
    std::vector<double> later;
    if (profile_->surrogate) later = DKV_TRY(later_shares(index, layer));
    std::vector<std::optional<double>> damages;
    for (std::size_t choice = 0; choice < kept.size(); ++choice) {
        auto const& window = window_kept[choice];
        int const known = (window.empty() ? 0 : 1) + (later.empty() ? 0 : 1);
        if (known == 0) {
            damages.emplace_back();
            continue;
        }
        double damage = 0;
        std::size_t row = 0;
        for (std::uint32_t head = 0; head < geometry_.kv_heads; ++head) {
            double lost = window.empty() ? 0 : 1 - window[head];
            double held = 0;
            for (std::uint32_t i = 0; i < kept[choice].lengths[head]; ++i, ++row)
                if (!later.empty())
                    held += later[std::size_t{head} * tokens_ +
                                  static_cast<std::size_t>(kept[choice].rows[row])];
            if (!later.empty()) lost += 1 - std::min(held, 1.0);
            damage += weight(index, head) * lost / known;
        }
        damages.emplace_back(damage * geometry_.layers / weight_sum_);
    }
    return damages;
}

}  // namespace dkv::offline
