#include "sidecar/config/policy_flags.h"

#include "sidecar/config/policy_option.h"

namespace dkv {

void add_policy_flags(CLI::App& app, PolicyRequest& request) {
    each_field([&app](char const* name,
                      auto& field) { add_option(app, parameter(name), field)->group("Policy"); },
               request);
}

}  // namespace dkv
