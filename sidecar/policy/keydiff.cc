// KeyDiff (Park et al. 2025): tokens whose keys are least like the mean direction are kept. Needs
// no queries.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_keydiff(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<RankedBudgets>(params, shape, Ranking::KeyDifference);
}

}  // namespace dkv
