// From a layer's queries (or the engine's scores) to its tokens in rank order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sidecar/pipeline/backend_array.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/pipeline/ranked_layer.h"

namespace dkv {

/// What ranking a layer gives.
struct Ranked {
    RankedLayer layer;
    BackendArray<float>
        pooled;  ///< [kv_heads, prefix], for later tallies; empty when there are none.
};

/// Holds the scratch memory of one prompt. Layers may be ranked in any order, and again.
class Ranker {
public:
    /// `backend`, `spec` and `policy` outlive the ranker.
    static Result<Ranker> create(Backend& backend, JobSpec const& spec, Policy const& policy);

    /// As many tokens as the policy's stage limits say. `source` has been checked.
    Result<Ranked> rank(std::uint32_t layer, LayerSource const& source);

private:
    Ranker(Backend& backend, JobSpec const& spec, Policy const& policy);

    std::size_t head_count() const noexcept { return spec_->geometry.kv_heads; }
    std::size_t prefix() const noexcept;
    Result<std::vector<float>> score(LayerSource const& source);
    Result<std::vector<float>> score_window(LayerSource const& source);
    Result<void> accumulate(LayerSource const& source);
    Result<void> score_keys(RowsView const& keys, KeyMeasure measure);
    Result<std::vector<float>> score_by_engine(RowsView const& scores);
    Result<std::span<float const>> pool(Ranked& ranked);
    Result<std::vector<std::int32_t>> select(std::span<float const> pooled,
                                             std::span<std::uint32_t const> limits);
    std::vector<std::int32_t> select_by_position(std::span<std::uint32_t const> limits) const;

    Backend* backend_;
    JobSpec const* spec_;
    Policy const* policy_;
    bool tallies_ = false;
    BackendArray<float> scores_;  // [kv_heads, prefix]; also what is ranked by if nothing pools.
    BackendArray<float> mass_;    // [kv_heads, prefix]
    BackendArray<float> pooled_;  // [kv_heads, prefix]; unused when every layer keeps its own.
    BackendArray<std::int32_t> ids_;
    std::vector<float> uploaded_;       // Alive as long as an upload may read it.
    std::vector<std::int32_t> tokens_;  // Likewise.
};

}  // namespace dkv
