// The policies there are: the sidecar's own list, or where none answers this program's.
#pragma once

#include "cli/command.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// What the sidecar answers. Where none answers, the policies that this program was built with and
/// their defaults: then default_policy is nullptr and default_source says why no sidecar was asked.
///
/// Errors: those of a sidecar that answers.
Result<wire::PolicyListT> known_policies(Context const& context);

}  // namespace dkv::cli
