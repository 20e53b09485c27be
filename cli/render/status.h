// The sidecar at a glance.
#pragma once

#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

std::string status_text(wire::StatusInfoT const& status,
                        wire::InstanceListT const& instances,
                        Style const& style);

}  // namespace dkv::cli
