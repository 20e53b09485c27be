// A policy between our own words and those of the wire.
#pragma once

#include "protocol/schema/dkv_generated.h"
#include "sidecar/policy/params.h"

namespace dkv::cli {

wire::PolicyT to_wire(PolicyRequest const& request);
/// Without a size given in another way, and without a profile.
wire::PolicyT to_wire(PolicyParams const& params);

/// Numbers that a sidecar has used.
PolicyParams params_of(wire::PolicyT const& policy);

}  // namespace dkv::cli
