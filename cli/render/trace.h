// Where a session's time went, as Chrome's and Perfetto's viewers read it.
#pragma once

#include <nlohmann/json.hpp>

#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// The trace-event format: microseconds from the session's first span on.
nlohmann::ordered_json trace_json(wire::SessionInfoT const& session);

}  // namespace dkv::cli
