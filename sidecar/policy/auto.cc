// What is best by the evaluation (docs/eval): a profile decides where there is one. Without one no
// rule that looks at the prompt beats equal budgets.
#include "sidecar/policy/factories.h"

namespace dkv {

std::unique_ptr<Policy> make_auto(PolicyParams const& params, PromptShape const& shape) {
    return params.profile ? make_dynamickv(params, shape) : make_snapkv(params, shape);
}

}  // namespace dkv
