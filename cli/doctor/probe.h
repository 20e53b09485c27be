// Asks the machine. Changes nothing on it; what it makes for a test is gone when it returns.
#pragma once

#include <string>

#include "cli/doctor/readings.h"

namespace dkv::cli::doctor {

/// Everything but `sidecar`.
Readings read_machine(std::string const& endpoint);

}  // namespace dkv::cli::doctor
