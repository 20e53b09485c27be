// Runs a golden case through the reference policies and compares every number.
#pragma once

#include <optional>
#include <string>

#include "protocol/base/result.h"
#include "tools/golden/golden_file.h"

namespace dkv::golden {

/// The first number that differs.
struct Disagreement {
    std::string field;   ///< As in the file, with its place: "budgets_per_update[0][2]".
    std::string theirs;  ///< What the file says.
    std::string ours;    ///< What dkv says.
};

/// Nothing when every number agrees. Of an error only its type is compared: the rest is the text
/// of one version of Python.
///
/// Errors: InvalidArgument when the case's inputs make no sense (no layers, window 0 …).
Result<std::optional<Disagreement>> check_case(GoldenCase const& golden);

}  // namespace dkv::golden
