// Honest savings: three numbers that are never mixed, attention kept, and the peak.
#pragma once

#include <string>
#include <vector>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// What was returned to the system, and apart from it to engines' pools, if anything was.
std::string given_back(wire::SavingsT const& savings);
/// One line: "12 sessions; 1.6 GiB dropped, 1.5 GiB returned (measured), …"
std::string savings_brief(wire::SavingsT const* savings);
std::string savings_text(wire::SavingsInfoT const& savings, Style const& style);

/// Mean attention kept per layer over these sessions of one instance; empty where none measured it.
std::vector<double> mass_per_layer(wire::SavingsInfoT const& savings, std::uint64_t instance);

}  // namespace dkv::cli
