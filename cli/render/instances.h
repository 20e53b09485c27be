// Attached engines.
#pragma once

#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// What to do when no engine is attached: one or two sentences.
std::string no_engine_text();
/// Everything about each of them.
std::string instances_text(wire::InstanceListT const& list, Style const& style);
/// One line for each; "" for none.
std::string instances_brief(wire::InstanceListT const& list, Style const& style);

}  // namespace dkv::cli
