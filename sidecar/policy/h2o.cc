// H2O (Zhang et al. 2023), heavy hitters: what all queries of the prompt attend to, not pooled, and
// the most recent tokens; as much in every layer. Where the paper drops tokens as it decodes, this
// is done once, after the prompt.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_h2o(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<RankedBudgets>(params, shape, Ranking::Accumulated);
}

}  // namespace dkv
