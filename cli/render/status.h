// The sidecar at a glance.
#pragma once

#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

std::string status_text(wire::StatusInfoT const& status,
                        wire::InstanceListT const& instances,
                        Style const& style);

/// A line of names, then one of all engines together (instance "all") and one for each. Numbers are
/// exact; cells are quoted where RFC 4180 wants it.
std::string status_csv(wire::StatusInfoT const& status, wire::InstanceListT const& instances);

}  // namespace dkv::cli
