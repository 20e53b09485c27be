// What a reader of an output should know about its way there.
#pragma once

#include <string>
#include <vector>

#include "cli/saved/formats/write_cache.h"

namespace dkv::offline {

/// Of an output that write_cache() would write: what is left out, and what becomes of the rows.
/// `cut`: rows are missing.
std::vector<std::string> conversion_notes(WriteRequest const& request, FileFormat from, bool cut);

}  // namespace dkv::offline
