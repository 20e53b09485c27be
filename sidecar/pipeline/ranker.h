// From a layer's queries (or the engine's scores) to its tokens in rank order, for one plan or for
// many over the same prompt: what they have in common is worked out once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sidecar/pipeline/backend_array.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/pipeline/ranked_layer.h"
#include "sidecar/pipeline/surrogate_scorer.h"

namespace dkv {

/// What ranking a layer gives.
struct Ranked {
    RankedLayer layer;
    /// [kv_heads, prefix], for later tallies; nullptr where no plan that ranks so tallies.
    std::shared_ptr<BackendArray<float> const> pooled;
};

/// Holds the scratch memory of one prompt.
class Ranker {
public:
    /// `backend` outlives the ranker.
    Ranker(Backend& backend, Geometry const& geometry, std::uint32_t prompt_tokens)
        : backend_(&backend), geometry_(geometry), prompt_tokens_(prompt_tokens) {}

    /// Gets ready to rank as this policy does, as many tokens as its stage limits say and `spare`
    /// more. By what is returned rank() knows it.
    Result<std::size_t> add(PolicyParams const& params,
                            Policy const& policy,
                            std::uint32_t spare = 0);

    /// The layer that is ranked from now on: any, in any order, and again. `source` has been
    /// checked; its queries may be more than a plan wants, and the last of them are taken.
    void take(LayerSource const& source);

    /// The best `limits` [kv_heads] tokens of each head; the layer's policy's stage limits at most.
    Result<Ranked> rank(std::size_t by, std::uint32_t layer, std::span<std::uint32_t const> limits);

    /// Nanoseconds that scoring took since the last call of this.
    std::uint64_t take_score_ns() noexcept { return std::exchange(score_ns_, 0); }

private:
    /// How tokens are scored before anything is smoothed. Of equal ones there is one.
    struct Scoring {
        Ranking ranking = Ranking::Scores;
        std::uint32_t window = 0;
        GroupReduce reduce = GroupReduce::Mean;
        bool query_norm = false;
        std::size_t attention = 0;  // The scoring by attention that knows this window's mass.

        std::shared_ptr<Surrogate const> surrogate;  // Of Ranking::Surrogate and Joined.
        SurrogateScorer by_surrogate;                // Likewise.
        std::uint32_t kernel = 0;                    // Of Joined: smooths the attention.
        Pool pool = Pool::Max;                       // Likewise.

        BackendArray<float> scores;  // [kv_heads, prefix]; also what ranks if nothing pools.
        BackendArray<float> mass;    // [kv_heads, prefix]
        BackendArray<float> peaks;   // Likewise, where a joined scoring wants them.
        bool ready = false;
        bool known = false;               // There was something to score by.
        std::vector<float> mass_on_host;  // Empty: unknown.
    };
    /// How scores become ranks.
    struct RankedBy {
        std::size_t scoring = 0;
        std::uint32_t kernel = 0;  // 0: nothing is pooled.
        Pool pool = Pool::Max;
        std::vector<std::int32_t> positions;  // Not empty: instead of scores.

        std::vector<std::uint32_t> limits;  // [layers, kv_heads]
        bool tallied = false;
        std::shared_ptr<Ranks const> ranks;  // Of the layer taken, once they are worked out.
        std::shared_ptr<BackendArray<float>> pooled;
    };

    std::size_t prefix(Scoring const& scoring) const noexcept {
        return prompt_tokens_ - scoring.window;
    }
    std::size_t score_count(Scoring const& scoring) const noexcept {
        return geometry_.kv_heads * prefix(scoring);
    }
    Result<std::size_t> add_scoring(Ranking ranking, PolicyParams const& params);
    std::size_t add_order(RankedBy by);
    Result<void> make_room(std::size_t index);

    bool has_queries(Scoring const& scoring) const noexcept;
    Result<void> score(Scoring& scoring);
    Result<void> score_timed(Scoring& scoring);
    Result<void> score_window(Scoring& scoring);
    Result<void> foresee(Scoring& scoring);
    Result<void> accumulate(Scoring& scoring);
    Result<void> score_keys(Scoring& scoring, KeyMeasure measure);
    Result<void> score_by_engine(Scoring& scoring);
    Result<std::vector<float>> engine_rows();
    Result<std::span<float const>> mass_of(Scoring& scoring);
    Result<void> work_out(RankedBy& by);
    Result<std::vector<std::int32_t>> best(RankedBy& by, std::span<std::uint32_t const> limits);
    Result<std::span<float const>> pool(RankedBy& by, Scoring const& scoring);
    Result<void> smooth(std::span<float const> scores,
                        std::uint32_t kernel,
                        Pool pool,
                        std::span<float> into);
    Result<std::vector<std::int32_t>> select(std::span<float const> scores,
                                             std::span<std::uint32_t const> limits,
                                             std::size_t tokens);

    Backend* backend_;
    Geometry geometry_;
    std::uint32_t prompt_tokens_;
    LayerSource source_;
    std::uint32_t layer_ = 0;  // That is ranked.
    std::uint64_t score_ns_ = 0;
    std::vector<Scoring> scorings_;
    std::vector<RankedBy> orders_;
    BackendArray<float> pooled_;  // Scratch, where no tally wants it later.
    BackendArray<std::int32_t> ids_;
    std::vector<float> uploaded_;       // Alive as long as an upload may read it.
    std::vector<std::int32_t> tokens_;  // Likewise.
};

}  // namespace dkv
