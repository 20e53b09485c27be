// Which tokens of a prompt each layer and KV head keeps: ranked layers in, positions out. The same
// for a prompt that an engine is just reading and for one that lies in a file. Moves no rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sidecar/pipeline/job.h"
#include "sidecar/pipeline/ranker.h"

namespace dkv {

class Plan {
public:
    /// Ranks by `ranker`, where `spare` more tokens of a head are ranked than the policy can keep.
    /// The prompt is longer than what is kept of it. `backend` outlives the plan.
    static Result<Plan> create(Backend& backend,
                               JobSpec const& spec,
                               Ranker& ranker,
                               std::uint32_t spare = 0);

    JobSpec const& spec() const noexcept { return spec_; }
    Policy const& policy() const noexcept { return *policy_; }

    /// Whether a layer's budgets are final as soon as it is weighed.
    bool settles_at_once() const noexcept { return policy_->budgets_known_by_layer(); }

    std::uint32_t layers_done() const noexcept {
        return static_cast<std::uint32_t>(layers_.size());
    }
    bool all_taken() const noexcept { return layers_.size() == spec_.geometry.layers; }

    /// Errors: BadState when `layer` is not the next one.
    Result<void> check_turn(std::uint32_t layer) const;

    /// A layer before it is taken.
    struct Weighed {
        RankedLayer ranks;  ///< At its final size where budgets settle at once.
        std::shared_ptr<BackendArray<float> const> pooled;  ///< As long as a tally may read it.
        float scale = 1;                                    ///< Of its scores in tallies.
        std::vector<std::uint64_t> counts;                  ///< Of the tally that is due after it.
    };

    /// Ranks the next layer, which the ranker has, and counts where a count is due. May be called
    /// again for the same layer, with the same numbers: nothing has changed.
    ///
    /// Errors: those of the backend; Unsupported for keep_mass where the mass is unknown.
    Result<Weighed> weigh(std::uint32_t layer, Ranker& ranker);

    /// Takes the layer, and cuts what has been taken to the new budgets. Returns the layers that
    /// lost tokens.
    std::vector<std::uint32_t> take(Weighed weighed);

    RankedLayer const& layer(std::uint32_t index) const { return layers_[index].ranks; }
    /// For those who fill a size up, or cut it further, once all are taken.
    RankedLayer& layer(std::uint32_t index) { return layers_[index].ranks; }

    /// [layers, kv_heads] rows as the budgets stand, window included.
    std::vector<std::uint32_t> budgeted_lengths() const;
    /// [layers taken, kv_heads] rows as they are kept, window included.
    std::vector<std::uint32_t> kept_lengths() const;
    /// [layers taken] share of the window's attention; empty: unknown.
    std::vector<float> mass_kept() const;

private:
    struct TakenLayer {
        RankedLayer ranks;
        std::shared_ptr<BackendArray<float> const> pooled;
        float scale = 1;
    };

    Plan(Backend& backend, JobSpec const& spec, std::unique_ptr<Policy> policy)
        : backend_(&backend), spec_(spec), policy_(std::move(policy)) {}

    std::uint32_t prefix() const noexcept { return spec_.prompt_tokens - spec_.params.window; }
    Result<float> tally_scale(Weighed const& weighed);
    Result<std::vector<std::uint64_t>> counts_with(std::uint32_t layer, Weighed const& weighed);
    Result<void> settle(std::uint32_t layer, Weighed& weighed);

    Backend* backend_;
    JobSpec spec_;
    std::unique_ptr<Policy> policy_;
    std::size_t ranked_by_ = 0;
    std::vector<TakenLayer> layers_;
};

}  // namespace dkv
