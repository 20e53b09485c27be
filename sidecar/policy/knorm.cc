// The norm of the key (Devoto et al. 2024): tokens with small keys are kept. Needs no queries.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_knorm(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<RankedBudgets>(params, shape, Ranking::KeyNorm);
}

}  // namespace dkv
