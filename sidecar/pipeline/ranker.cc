#include "sidecar/pipeline/ranker.h"

#include <algorithm>
#include <numeric>

#include "sidecar/pipeline/engine_scores.h"

namespace dkv {

Ranker::Ranker(Backend& backend, JobSpec const& spec, Policy const& policy)
    : backend_(&backend), spec_(&spec), policy_(&policy) {}

Result<Ranker> Ranker::create(Backend& backend, JobSpec const& spec, Policy const& policy) {
    Ranker ranker(backend, spec, policy);
    std::size_t limit_max = 0;
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
        auto const limits = policy.stage_limits(layer);
        limit_max =
            std::max(limit_max, std::accumulate(limits.begin(), limits.end(), std::size_t{0}));
        ranker.tallies_ = ranker.tallies_ || policy.tally_total(layer).has_value();
    }

    std::size_t const count = ranker.head_count() * ranker.prefix();
    ranker.scores_ = DKV_TRY(BackendArray<float>::create(backend, count));
    ranker.mass_ = DKV_TRY(BackendArray<float>::create(backend, count));
    if (policy.ranking() == Ranking::Positions) return ranker;
    if (!ranker.tallies_ && policy.ranking() == Ranking::Scores)
        ranker.pooled_ = DKV_TRY(BackendArray<float>::create(backend, count));
    ranker.ids_ = DKV_TRY(BackendArray<std::int32_t>::create(backend, limit_max));
    return ranker;
}

std::size_t Ranker::prefix() const noexcept {
    return spec_->prompt_tokens - spec_->params.window;
}

Result<Ranked> Ranker::rank(std::uint32_t layer, LayerSource const& source) {
    auto const mass = DKV_TRY(score(source));
    auto const limits = policy_->stage_limits(layer);

    if (policy_->ranking() == Ranking::Positions)
        return Ranked{ranked_layer(select_by_position(limits), limits, mass, prefix()), {}};

    Ranked ranked;
    std::span<float const> best_by = scores_.elements();
    if (policy_->ranking() == Ranking::Scores) best_by = DKV_TRY(pool(ranked));
    auto const ids = DKV_TRY(select(best_by, limits));
    ranked.layer = ranked_layer(ids, limits, mass, prefix());
    return ranked;
}

/// scores_ smoothed: kept with the layer where tallies will want it.
Result<std::span<float const>> Ranker::pool(Ranked& ranked) {
    if (tallies_)
        ranked.pooled = DKV_TRY(BackendArray<float>::create(*backend_, head_count() * prefix()));
    auto const pooled = tallies_ ? ranked.pooled.elements() : pooled_.elements();
    DKV_TRY(backend_->pool({.scores = scores_.elements(),
                            .out = pooled,
                            .heads = spec_->geometry.kv_heads,
                            .tokens = static_cast<std::uint32_t>(prefix()),
                            .kernel = spec_->params.kernel,
                            .pool = spec_->params.pool}));
    return std::span<float const>(pooled);
}

/// Fills scores_ where there is something to score by. What comes back is the mass [kv_heads,
/// prefix], or nothing when it is unknown.
Result<std::vector<float>> Ranker::score(LayerSource const& source) {
    bool const has_queries = source.queries.data != nullptr;
    std::vector<float> mass;
    if (has_queries)
        mass = DKV_TRY(score_window(source));
    else if (source.scores.data != nullptr)
        mass = DKV_TRY(score_by_engine(source.scores));

    switch (policy_->ranking()) {
        case Ranking::Accumulated:
            if (has_queries) DKV_TRY(accumulate(source));
            if (!has_queries) mass.clear();  // Of all queries, not of the window's.
            break;
        case Ranking::KeyNorm: DKV_TRY(score_keys(source.keys, KeyMeasure::Norm)); break;
        case Ranking::KeyDifference:
            DKV_TRY(score_keys(source.keys, KeyMeasure::Difference));
            break;
        case Ranking::Scores:
        case Ranking::Positions: break;
    }
    return mass;
}

/// By the last queries there are.
Result<std::vector<float>> Ranker::score_window(LayerSource const& source) {
    RowsView queries = source.queries;
    std::uint32_t const window = spec_->params.window;
    DKV_ASSERT(queries.tokens >= window);
    queries.data = queries.row(0, queries.tokens - window);
    queries.tokens = window;
    DKV_TRY(backend_->score({.queries = queries,
                             .keys = source.keys,
                             .scores = scores_.elements(),
                             .mass = mass_.elements(),
                             .reduce = spec_->params.reduce,
                             .scale = source.scale,
                             .softcap = source.softcap,
                             .lse = {}}));
    return download<float>(*backend_, mass_.elements());
}

Result<void> Ranker::accumulate(LayerSource const& source) {
    return backend_->accumulate({.queries = source.queries,
                                 .keys = source.keys,
                                 .scores = scores_.elements(),
                                 .window = spec_->params.window,
                                 .reduce = spec_->params.reduce,
                                 .per_query = spec_->params.query_norm,
                                 .scale = source.scale,
                                 .softcap = source.softcap});
}

Result<void> Ranker::score_keys(RowsView const& keys, KeyMeasure measure) {
    return backend_->key_score({.keys = keys,
                                .scores = scores_.elements(),
                                .window = spec_->params.window,
                                .measure = measure});
}

Result<std::vector<float>> Ranker::score_by_engine(RowsView const& scores) {
    // The rows may have any strides: a gather of every token, head by head, makes them dense.
    tokens_.resize(scores.tokens);
    std::iota(tokens_.begin(), tokens_.end(), 0);
    auto const ids = DKV_TRY(BackendArray<std::int32_t>::create(*backend_, tokens_.size()));
    DKV_TRY(backend_->upload(std::as_bytes(std::span(tokens_)),
                             std::as_writable_bytes(ids.elements())));
    auto const rows =
        DKV_TRY(BackendArray<float>::create(*backend_, std::size_t{scores.heads} * scores.tokens));
    for (std::uint32_t head = 0; head < scores.heads; ++head) {
        RowsView row = scores;
        row.data = scores.row(head, 0);
        row.heads = 1;
        std::uint64_t const offset = std::uint64_t{head} * scores.tokens * sizeof(float);
        DKV_TRY(backend_->gather({.source = row,
                                  .ids = ids.elements(),
                                  .lengths = std::span(&scores.tokens, 1),
                                  .out = std::as_writable_bytes(rows.elements()),
                                  .out_offsets = std::span(&offset, 1)}));
    }
    auto const on_host = DKV_TRY(download<float>(*backend_, rows.elements()));

    PrefixScores own = prefix_scores(on_host, spec_->geometry, scores.tokens,
                                     static_cast<std::uint32_t>(prefix()), spec_->params.reduce);
    uploaded_ = std::move(own.scores);
    if (spec_->params.query_norm && policy_->ranking() == Ranking::Accumulated)
        for (std::size_t i = 0; i < uploaded_.size(); ++i)
            uploaded_[i] /= static_cast<float>(spec_->prompt_tokens - i % prefix());
    DKV_TRY(backend_->upload(std::as_bytes(std::span(uploaded_)),
                             std::as_writable_bytes(scores_.elements())));
    return std::move(own.mass);
}

Result<std::vector<std::int32_t>> Ranker::select(std::span<float const> pooled,
                                                 std::span<std::uint32_t const> limits) {
    auto const count = std::accumulate(limits.begin(), limits.end(), std::size_t{0});
    if (count == 0) return std::vector<std::int32_t>();
    auto const ids = ids_.elements().first(count);
    DKV_TRY(backend_->select({.scores = pooled,
                              .keep = limits,
                              .ids = ids,
                              .tokens = static_cast<std::uint32_t>(prefix())}));
    return download<std::int32_t>(*backend_, ids);
}

std::vector<std::int32_t> Ranker::select_by_position(std::span<std::uint32_t const> limits) const {
    auto const positions = policy_->ranked_positions();
    std::vector<std::int32_t> ids;
    for (std::uint32_t const limit : limits) {
        DKV_ASSERT(limit <= positions.size());
        ids.insert(ids.end(), positions.begin(), positions.begin() + limit);
    }
    return ids;
}

}  // namespace dkv
