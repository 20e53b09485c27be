#pragma once

#include "sidecar/policy/params.h"

namespace CLI {
class App;
}

namespace dkv {

/// Adds a flag for every field of PolicyRequest to `app`, the same ones for dkvd and for `dkv
/// policy set`. The policy's name is the caller's to add. --profile reads its file while parsing,
/// and throws a ValidationError in read_profile()'s words. `request` must outlive the parse.
void add_policy_flags(CLI::App& app, PolicyRequest& request);

}  // namespace dkv
