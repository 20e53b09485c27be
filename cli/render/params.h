// A policy's numbers as they were used: those that the policy looks at.
#pragma once

#include <string>

#include "cli/render/json.h"
#include "sidecar/policy/params.h"

namespace dkv::cli {

/// "dynamickv, capacity 512, window 32, kernel 7, pool max"
std::string params_line(PolicyParams const& params);
/// {"capacity": 512, "window": 32, "kernel": 7, "pool": "max", …}, without the policy's name.
Json params_json(PolicyParams const& params);

}  // namespace dkv::cli
