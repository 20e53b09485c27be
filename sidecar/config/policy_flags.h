#pragma once

#include "sidecar/policy/params.h"

namespace CLI {
class App;
}

namespace dkv {

/// Adds --capacity, --window, --kernel, --pool, --reduce, --r-max, --r-min, --update-interval,
/// --sinks and --beta to `app`: the same flags for dkvd and for `dkv policy set`. The name of the
/// policy is the caller's to add. `request` must outlive the parse.
void add_policy_flags(CLI::App& app, PolicyRequest& request);

}  // namespace dkv
