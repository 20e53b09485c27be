// What is best by the evaluation (docs/eval). A profile decides budgets where there is one; without
// one no rule that looks at the prompt beats equal budgets. Its surrogate foresees later questions:
// then one threshold over that and the window's attention has as much say in budgets.
#include "sidecar/policy/factories.h"

namespace dkv {

std::unique_ptr<Policy> make_auto(PolicyParams const& params, PromptShape const& shape) {
    if (!params.profile) return make_snapkv(params, shape);
    if (!foresees(params)) return make_dynamickv(params, shape);
    if (params.purpose == Purpose::Reuse) return make_reuse(params, shape);
    return make_foreseen(params, shape, Ranking::Joined);
}

}  // namespace dkv
