#include "sidecar/pipeline/ranker.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace dkv {
namespace {

/// The first of each head's `have` ids.
std::vector<std::int32_t> first_positions(std::span<std::int32_t const> positions,
                                          std::span<std::uint32_t const> limits) {
    std::vector<std::int32_t> ids;
    for (std::uint32_t const limit : limits) {
        DKV_ASSERT(limit <= positions.size());
        ids.insert(ids.end(), positions.begin(), positions.begin() + limit);
    }
    return ids;
}

bool by_surrogate(Ranking ranking) noexcept {
    return ranking == Ranking::Surrogate || ranking == Ranking::Joined;
}

/// Two plans may have read the same file.
bool same(std::shared_ptr<Surrogate const> const& a, std::shared_ptr<Surrogate const> const& b) {
    return a == b || (a != nullptr && b != nullptr && *a == *b);
}

}  // namespace

Result<std::size_t> Ranker::add(PolicyParams const& params,
                                Policy const& policy,
                                std::uint32_t spare) {
    Ranking const ranking = policy.ranking();
    RankedBy by;
    by.scoring = DKV_TRY(add_scoring(ranking, params));
    if (ranking == Ranking::Scores) {
        by.kernel = params.kernel;
        by.pool = params.pool;
    }
    if (ranking == Ranking::Positions) by.positions = policy.ranked_positions();
    auto const prefix = static_cast<std::uint32_t>(this->prefix(scorings_[by.scoring]));
    for (std::uint32_t layer = 0; layer < geometry_.layers; ++layer) {
        for (std::uint32_t const limit : policy.stage_limits(layer))
            by.limits.push_back(std::min(prefix, limit + spare));
        by.tallied = by.tallied || policy.tally_total(layer).has_value();
    }
    if (by.tallied && by.kernel == 0) by.kernel = 1;  // Kept as they are.
    std::size_t const index = add_order(std::move(by));
    DKV_TRY(make_room(index));
    return index;
}

Result<std::size_t> Ranker::add_scoring(Ranking ranking, PolicyParams const& params) {
    Scoring scoring;
    scoring.ranking = ranking;
    scoring.window = params.window;
    bool const by_attention = ranking == Ranking::Scores || ranking == Ranking::Accumulated ||
                              ranking == Ranking::Given || ranking == Ranking::Joined;
    if (by_attention) scoring.reduce = params.reduce;
    scoring.query_norm = ranking == Ranking::Accumulated && params.query_norm;
    if (by_surrogate(ranking)) scoring.surrogate = params.profile->surrogate;
    if (ranking == Ranking::Joined) {
        scoring.kernel = params.kernel;
        scoring.pool = params.pool;
    }
    auto const found = std::ranges::find_if(scorings_, [&](Scoring const& other) {
        return other.ranking == scoring.ranking && other.window == scoring.window &&
               other.reduce == scoring.reduce && other.query_norm == scoring.query_norm &&
               other.kernel == scoring.kernel && other.pool == scoring.pool &&
               same(other.surrogate, scoring.surrogate);
    });
    if (found != scorings_.end()) return static_cast<std::size_t>(found - scorings_.begin());

    std::size_t const count = score_count(scoring);
    if (ranking != Ranking::Scores)
        scoring.attention = DKV_TRY(add_scoring(Ranking::Scores, params));
    if (ranking == Ranking::Joined && scorings_[scoring.attention].peaks.elements().empty())
        scorings_[scoring.attention].peaks = DKV_TRY(BackendArray<float>::create(*backend_, count));
    if (ranking != Ranking::Positions)
        scoring.scores = DKV_TRY(BackendArray<float>::create(*backend_, count));
    if (by_surrogate(ranking))
        scoring.by_surrogate =
            DKV_TRY(SurrogateScorer::create(*backend_, scoring.surrogate, prompt_tokens_));
    if (ranking == Ranking::Scores) {
        scoring.mass = DKV_TRY(BackendArray<float>::create(*backend_, count));
        scoring.attention = scorings_.size();
    }
    scorings_.push_back(std::move(scoring));
    return scorings_.size() - 1;
}

/// Where another policy ranks alike, the larger limit serves both: a prefix of a selection is a
/// selection.
std::size_t Ranker::add_order(RankedBy by) {
    auto const same = std::ranges::find_if(orders_, [&](RankedBy const& other) {
        return other.scoring == by.scoring && other.kernel == by.kernel && other.pool == by.pool &&
               other.positions == by.positions;
    });
    if (same == orders_.end()) {
        orders_.push_back(std::move(by));
        return orders_.size() - 1;
    }
    for (std::size_t i = 0; i < by.limits.size(); ++i)
        same->limits[i] = std::max(same->limits[i], by.limits[i]);
    same->tallied = same->tallied || by.tallied;
    return static_cast<std::size_t>(same - orders_.begin());
}

Result<void> Ranker::make_room(std::size_t index) {
    RankedBy const& by = orders_[index];
    if (!by.positions.empty()) return {};
    std::size_t most = 0;
    for (std::size_t i = 0; i < by.limits.size(); i += geometry_.kv_heads)
        most = std::max(
            most,
            std::accumulate(by.limits.begin() + static_cast<std::ptrdiff_t>(i),
                            by.limits.begin() + static_cast<std::ptrdiff_t>(i + geometry_.kv_heads),
                            std::size_t{0}));
    if (most > ids_.elements().size())
        ids_ = DKV_TRY(BackendArray<std::int32_t>::create(*backend_, most));
    Scoring const& scoring = scorings_[by.scoring];
    bool const smooths = scoring.kernel != 0 || (by.kernel != 0 && !by.tallied);
    std::size_t const pooled = smooths ? score_count(scoring) : 0;
    if (pooled > pooled_.elements().size())
        pooled_ = DKV_TRY(BackendArray<float>::create(*backend_, pooled));
    return {};
}

void Ranker::take(LayerSource const& source) {
    source_ = source;
    for (Scoring& scoring : scorings_)
        scoring.ready = false;
    for (RankedBy& by : orders_) {
        by.ranks.reset();
        by.pooled.reset();
    }
}

Result<Ranked> Ranker::rank(std::size_t by,
                            std::uint32_t layer,
                            std::span<std::uint32_t const> limits) {
    RankedBy& order = orders_[by];
    layer_ = layer;
    if (order.ranks == nullptr) DKV_TRY(work_out(order));
    return Ranked{best_of(order.ranks, limits), order.pooled};
}

Result<void> Ranker::work_out(RankedBy& by) {
    Scoring& scoring = scorings_[by.scoring];
    DKV_TRY(score_timed(scoring));
    auto const mass = DKV_TRY(mass_of(scoring));
    auto const limits =
        std::span(by.limits).subspan(std::size_t{layer_} * geometry_.kv_heads, geometry_.kv_heads);
    auto ids = DKV_TRY(best(by, limits));
    by.ranks =
        std::make_shared<Ranks const>(make_ranks(std::move(ids), limits, mass, prefix(scoring)));
    return {};
}

/// What is scored is known.
Result<std::vector<std::int32_t>> Ranker::best(RankedBy& by,
                                               std::span<std::uint32_t const> limits) {
    Scoring& scoring = scorings_[by.scoring];
    if (!by.positions.empty()) return first_positions(by.positions, limits);
    std::span<float const> best_by = scoring.scores.elements();
    if (by.kernel != 0) best_by = DKV_TRY(pool(by, scoring));
    return select(best_by, limits, prefix(scoring));
}

/// The scores smoothed: kept with the layer where tallies will want it.
Result<std::span<float const>> Ranker::pool(RankedBy& by, Scoring const& scoring) {
    std::size_t const count = score_count(scoring);
    std::shared_ptr<BackendArray<float>> kept;
    if (by.tallied)
        kept = std::make_shared<BackendArray<float>>(
            DKV_TRY(BackendArray<float>::create(*backend_, count)));
    auto const into = kept ? kept->elements() : pooled_.elements().first(count);
    DKV_TRY(smooth(scoring.scores.elements(), by.kernel, by.pool, into));
    by.pooled = std::move(kept);
    return std::span<float const>(into);
}

/// Both [kv_heads, prefix].
Result<void> Ranker::smooth(std::span<float const> scores,
                            std::uint32_t kernel,
                            Pool pool,
                            std::span<float> into) {
    return backend_->pool({.scores = scores,
                           .out = into,
                           .heads = geometry_.kv_heads,
                           .tokens = static_cast<std::uint32_t>(scores.size() / geometry_.kv_heads),
                           .kernel = kernel,
                           .pool = pool});
}

Result<std::vector<std::int32_t>> Ranker::select(std::span<float const> scores,
                                                 std::span<std::uint32_t const> limits,
                                                 std::size_t tokens) {
    auto const count = std::accumulate(limits.begin(), limits.end(), std::size_t{0});
    if (count == 0) return std::vector<std::int32_t>();
    auto const ids = ids_.elements().first(count);
    DKV_TRY(backend_->select({.scores = scores,
                              .keep = limits,
                              .ids = ids,
                              .tokens = static_cast<std::uint32_t>(tokens)}));
    return download<std::int32_t>(*backend_, ids);
}

}  // namespace dkv
