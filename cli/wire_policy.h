// A policy in the words of the wire.
#pragma once

#include "protocol/schema/dkv_generated.h"
#include "sidecar/policy/params.h"

namespace dkv::cli {

wire::PolicyT to_wire(PolicyRequest const& request);
/// Without a size given in another way, and without a profile.
wire::PolicyT to_wire(PolicyParams const& params);

}  // namespace dkv::cli
