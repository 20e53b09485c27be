// For questions that come later: KVzip's rule, one threshold for all heads of all layers, over what
// a profile's surrogate foresees of its scores. Needs no queries.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_reuse(PolicyParams const& params, PromptShape const& shape) {
    // An alpha of 0 asks for budgets that are alike, whatever a threshold says.
    if (params.profile->alpha == 0)
        return std::make_unique<RankedBudgets>(params, shape, Ranking::Surrogate);
    PolicyParams by_threshold = params;
    by_threshold.profile.reset();  // Its budgets would be taken.
    by_threshold.granularity = Granularity::LayerHead;
    return make_by_counts(by_threshold, shape, Ranking::Surrogate);
}

}  // namespace dkv
