// What dkv doctor found.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/doctor/judge.h"
#include "cli/render/style.h"

namespace dkv::cli {

std::string findings_text(std::vector<doctor::Finding> const& findings, Style const& style);
nlohmann::ordered_json findings_json(std::vector<doctor::Finding> const& findings);

}  // namespace dkv::cli
