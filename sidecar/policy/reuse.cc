// For questions that come later: KVzip's rule, one threshold for all heads of all layers, over what
// a profile's surrogate foresees of its scores. Needs no queries.
#include "sidecar/policy/factories.h"

namespace dkv {

std::unique_ptr<Policy> make_reuse(PolicyParams const& params, PromptShape const& shape) {
    return make_foreseen(params, shape, Ranking::Surrogate);
}

}  // namespace dkv
