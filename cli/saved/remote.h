// Files that a running sidecar compacts.
#pragma once

#include <span>
#include <vector>

#include "cli/command.h"
#include "cli/saved/offline/compact.h"

namespace dkv::cli {

/// One after another, as offline::compact_all() does it: in the requests' order, one file's failure
/// stops none of the others.
///
/// Errors: those of reaching the sidecar.
Result<std::vector<Result<offline::CompactOutcome>>> compact_remotely(
    Context const& context,
    std::span<offline::CompactRequest const> requests,
    offline::Progress const& progress,
    offline::Ended const& ended);

}  // namespace dkv::cli
