// The rows of a sweep as tables: policies by sizes.
#pragma once

#include <string>
#include <vector>

#include "cli/render/json.h"
#include "cli/render/style.h"

namespace dkv::cli {

/// Means over files and layers. `rows` as row_json() makes them. What could not be had of a file
/// is told below the tables, once for each reason.
std::string sweep_text(std::vector<Json> const& rows, Style const& style);

}  // namespace dkv::cli
