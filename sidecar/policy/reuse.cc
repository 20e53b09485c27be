// For questions that come later: the profile's budgets, and the tokens of which its surrogate says
// that later text attends to them. Needs no queries.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"
#include "sidecar/policy/profile_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_reuse(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<RankedBudgets>(profile_budgets(*params.profile, params.base(), shape),
                                           Ranking::Surrogate);
}

}  // namespace dkv
