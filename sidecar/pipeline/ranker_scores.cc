// How a Ranker comes by scores and by the attention's mass.
#include <numeric>
#include <utility>

#include "sidecar/metrics/stages.h"
#include "sidecar/pipeline/engine_scores.h"
#include "sidecar/pipeline/ranker.h"

namespace dkv {

bool Ranker::has_queries(Scoring const& scoring) const noexcept {
    std::uint32_t const wanted =
        scoring.ranking == Ranking::Accumulated ? prompt_tokens_ : scoring.window;
    return source_.queries.data != nullptr && source_.queries.tokens >= wanted;
}

/// Fills the scores where there is something to score by.
Result<void> Ranker::score(Scoring& scoring) {
    if (scoring.ready) return {};
    scoring.mass_on_host.clear();
    scoring.known = true;
    bool const by_engine = !has_queries(scoring) && source_.scores.data != nullptr;
    switch (scoring.ranking) {
        case Ranking::Scores:
            if (has_queries(scoring)) DKV_TRY(score_window(scoring));
            if (by_engine) DKV_TRY(score_by_engine(scoring));
            scoring.known = has_queries(scoring) || by_engine;
            break;
        case Ranking::Accumulated:
            if (has_queries(scoring)) DKV_TRY(accumulate(scoring));
            if (by_engine) DKV_TRY(score_by_engine(scoring));
            break;
        case Ranking::KeyNorm: DKV_TRY(score_keys(scoring, KeyMeasure::Norm)); break;
        case Ranking::KeyDifference: DKV_TRY(score_keys(scoring, KeyMeasure::Difference)); break;
        case Ranking::Surrogate:
        case Ranking::Joined: DKV_TRY(foresee(scoring)); break;
        case Ranking::Given: DKV_TRY(score_by_engine(scoring)); break;
        case Ranking::Positions: break;
    }
    scoring.ready = true;
    return {};
}

Result<void> Ranker::score_timed(Scoring& scoring) {
    auto const begin = steady_ns();
    auto scored = score(scoring);
    score_ns_ += steady_ns() - begin;
    return scored;
}

/// [kv_heads, prefix], or nothing when it is unknown: as it is of the scores that an engine gave
/// for all queries.
Result<std::span<float const>> Ranker::mass_of(Scoring& scoring) {
    if (scoring.ranking == Ranking::Accumulated && !has_queries(scoring))
        return std::span<float const>();
    Scoring& attention = scorings_[scoring.attention];
    DKV_TRY(score_timed(attention));
    return std::span<float const>(attention.mass_on_host);
}

/// By the last queries there are.
Result<void> Ranker::score_window(Scoring& scoring) {
    RowsView queries = source_.queries;
    queries.data = queries.row(0, queries.tokens - scoring.window);
    queries.tokens = scoring.window;
    DKV_TRY(backend_->score({.queries = queries,
                             .keys = source_.keys,
                             .scores = scoring.scores.elements(),
                             .mass = scoring.mass.elements(),
                             .peaks = scoring.peaks.elements(),
                             .reduce = scoring.reduce,
                             .scale = source_.scale,
                             .softcap = source_.softcap,
                             .sink_logits = source_.sink_logits}));
    scoring.mass_on_host = DKV_TRY(download<float>(*backend_, scoring.mass.elements()));
    return {};
}

/// By the surrogate; joined: or by the most that a query of the window attends, where that is more
/// and known. An engine's own scores are taken for it.
Result<void> Ranker::foresee(Scoring& scoring) {
    std::span<float const> attention;
    if (scoring.ranking == Ranking::Joined) {
        Scoring& window = scorings_[scoring.attention];
        DKV_TRY(score(window));
        auto const into = pooled_.elements().first(score_count(window));
        auto const& seen = has_queries(window) ? window.peaks : window.scores;
        if (window.known) {
            DKV_TRY(smooth(seen.elements(), scoring.kernel, scoring.pool, into));
            attention = into;
        }
    }
    return scoring.by_surrogate.score(layer_, source_.keys, source_.values, scoring.window,
                                      attention, scoring.scores.elements());
}

Result<void> Ranker::accumulate(Scoring& scoring) {
    return backend_->accumulate({.queries = source_.queries,
                                 .keys = source_.keys,
                                 .scores = scoring.scores.elements(),
                                 .window = scoring.window,
                                 .reduce = scoring.reduce,
                                 .per_query = scoring.query_norm,
                                 .scale = source_.scale,
                                 .softcap = source_.softcap,
                                 .sink_logits = source_.sink_logits});
}

Result<void> Ranker::score_keys(Scoring& scoring, KeyMeasure measure) {
    return backend_->key_score({.keys = source_.keys,
                                .scores = scoring.scores.elements(),
                                .window = scoring.window,
                                .measure = measure});
}

/// The engine's scores as dense rows. They may have any strides: a gather of every token, head by
/// head, makes them dense.
Result<std::vector<float>> Ranker::engine_rows() {
    RowsView const& scores = source_.scores;
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
    return download<float>(*backend_, rows.elements());
}

Result<void> Ranker::score_by_engine(Scoring& scoring) {
    auto const rows = DKV_TRY(engine_rows());
    PrefixScores own = prefix_scores(rows, geometry_, source_.scores.tokens,
                                     static_cast<std::uint32_t>(prefix(scoring)), scoring.reduce);
    uploaded_ = std::move(own.scores);
    if (scoring.query_norm)
        for (std::size_t i = 0; i < uploaded_.size(); ++i)
            uploaded_[i] /= static_cast<float>(prompt_tokens_ - i % prefix(scoring));
    DKV_TRY(backend_->upload(std::as_bytes(std::span(uploaded_)),
                             std::as_writable_bytes(scoring.scores.elements())));
    if (scoring.ranking == Ranking::Scores) scoring.mass_on_host = std::move(own.mass);
    return {};
}

}  // namespace dkv
