// SnapKV (Li et al. 2024): the window's attention ranks, every layer gets the same.
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {

std::unique_ptr<Policy> make_snapkv(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<KnownBudgets>(HeadBudgets(shape.layers, shape.kv_heads, params.base()));
}

}  // namespace dkv
