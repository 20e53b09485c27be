// Scores that were worked out elsewhere, by a replay of the context for one (KVzip, Kim et al.
// 2025): one threshold over what shares the budget, or a profile's budgets.
#include "sidecar/policy/factories.h"

namespace dkv {

std::unique_ptr<Policy> make_scores(PolicyParams const& params, PromptShape const& shape) {
    return make_by_counts(params, shape, Ranking::Given);
}

}  // namespace dkv
