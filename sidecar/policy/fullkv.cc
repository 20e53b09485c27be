// FullKV keeps everything: no policy is the policy.
#include "sidecar/policy/factories.h"

namespace dkv {

std::unique_ptr<Policy> make_fullkv(PolicyParams const& /*params*/, PromptShape const& /*shape*/) {
    return nullptr;
}

}  // namespace dkv
