#include "sidecar/pipeline/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "sidecar/pipeline/spec.h"

namespace dkv {

Result<Plan> Plan::create(Backend& backend,
                          JobSpec const& spec,
                          Ranker& ranker,
                          std::uint32_t spare) {
    auto policy = make_policy(spec.params, shape_of(spec));
    DKV_ASSERT(policy != nullptr);
    Plan plan(backend, spec, std::move(policy));
    spare += std::min(spec.rounding.multiple - 1, spec.prompt_tokens);
    plan.ranked_by_ = DKV_TRY(ranker.add(spec.params, *plan.policy_, spare));
    return plan;
}

Result<void> Plan::check_turn(std::uint32_t layer) const {
    if (all_taken())
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) + " comes after all " +
                                              std::to_string(layers_.size()) + " layers"};
    if (layer != layers_.size())
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) + " comes when layer " +
                                              std::to_string(layers_.size()) + " is next"};
    return {};
}

Result<Plan::Weighed> Plan::weigh(std::uint32_t layer, Ranker& ranker) {
    DKV_TRY(check_turn(layer));
    Ranked ranked =
        DKV_TRY(ranker.rank(ranked_by_, layer, rounded(spec_, policy_->stage_limits(layer))));
    Weighed weighed{.ranks = std::move(ranked.layer),
                    .pooled = std::move(ranked.pooled),
                    .scale = 1,
                    .counts = {}};
    weighed.scale = DKV_TRY(tally_scale(weighed));
    weighed.counts = DKV_TRY(counts_with(layer, weighed));
    if (settles_at_once()) DKV_TRY(settle(layer, weighed));
    return weighed;
}

/// What makes this layer comparable with others. A layer whose scores do not add up to more than
/// nothing has nothing to be counted by.
Result<float> Plan::tally_scale(Weighed const& weighed) {
    if (spec_.params.score_norm == ScoreNorm::None || weighed.pooled == nullptr) return 1.0F;
    std::vector<double> sums(spec_.geometry.kv_heads);
    DKV_TRY(backend_->sum({.scores = weighed.pooled->elements(),
                           .sums = sums,
                           .heads = spec_.geometry.kv_heads,
                           .tokens = prefix(),
                           .skip = spec_.params.tally_skip()}));
    DKV_TRY(backend_->synchronize());
    double const sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    // 1 over less than that may not fit in f32; and a sum may be NaN.
    return sum >= double{std::numeric_limits<float>::min()} ? static_cast<float>(1 / sum) : 0.0F;
}

/// The tally that is due after this layer, or nothing.
Result<std::vector<std::uint64_t>> Plan::counts_with(std::uint32_t layer, Weighed const& weighed) {
    std::vector<std::uint64_t> counts;
    auto const total = policy_->tally_total(layer);
    if (!total) return counts;

    std::vector<std::span<float const>> scores;
    std::vector<float> scales;
    for (std::size_t seen = policy_->tally_from(layer); seen < layers_.size(); ++seen) {
        scores.emplace_back(layers_[seen].pooled->elements());
        scales.push_back(layers_[seen].scale);
    }
    scores.emplace_back(weighed.pooled->elements());
    scales.push_back(weighed.scale);
    if (spec_.params.score_norm == ScoreNorm::None) scales.clear();
    counts.resize(scores.size() * spec_.geometry.kv_heads);
    DKV_TRY(backend_->tally({.layers = scores,
                             .counts = counts,
                             .heads = spec_.geometry.kv_heads,
                             .tokens = prefix(),
                             .total = *total,
                             .scales = scales,
                             .skip = spec_.params.tally_skip()}));
    DKV_TRY(backend_->synchronize());
    return counts;
}

/// Gives the layer its final budgets, and cuts it to them.
Result<void> Plan::settle(std::uint32_t layer, Weighed& weighed) {
    if (policy_->wants_mass()) {
        if (!weighed.ranks.mass_known)
            return Error{ErrorCode::Unsupported,
                         "keep_mass needs the window's attention on every token, which the "
                         "engine's scores of layer " +
                             std::to_string(layer) + " do not tell: send queries"};
        policy_->take_mass(layer, weighed.ranks.mass_curves());
    }
    if (!weighed.counts.empty()) policy_->rebalance(layer + 1, weighed.counts);
    weighed.ranks.trim(rounded(spec_, policy_->budgets().layer(layer)));
    weighed.pooled.reset();
    return {};
}

std::vector<std::uint32_t> Plan::take(Weighed weighed) {
    layers_.push_back({.ranks = std::move(weighed.ranks),
                       .pooled = std::move(weighed.pooled),
                       .scale = weighed.scale});
    std::vector<std::uint32_t> trimmed;
    if (!settles_at_once() && !weighed.counts.empty()) {
        policy_->rebalance(layers_done(), weighed.counts);
        for (std::uint32_t layer = 0; layer < layers_done(); ++layer)
            if (layers_[layer].ranks.trim(rounded(spec_, policy_->budgets().layer(layer))))
                trimmed.push_back(layer);
    }
    if (all_taken())
        for (TakenLayer& one : layers_)
            one.pooled.reset();
    return trimmed;
}

std::vector<std::uint32_t> Plan::budgeted_lengths() const {
    std::vector<std::uint32_t> lengths;
    for (std::uint32_t layer = 0; layer < spec_.geometry.layers; ++layer)
        for (std::uint32_t const budget : rounded(spec_, policy_->budgets().layer(layer)))
            lengths.push_back(spec_.params.window + budget);
    return lengths;
}

std::vector<std::uint32_t> Plan::kept_lengths() const {
    std::vector<std::uint32_t> lengths;
    for (TakenLayer const& layer : layers_)
        for (std::uint32_t const length : layer.ranks.lengths(spec_.params.window))
            lengths.push_back(length);
    return lengths;
}

std::vector<float> Plan::mass_kept() const {
    std::vector<float> shares;
    for (TakenLayer const& layer : layers_) {
        auto const mass = layer.ranks.mass_kept();
        if (!mass) return {};
        shares.push_back(*mass);
    }
    return shares;
}

}  // namespace dkv
