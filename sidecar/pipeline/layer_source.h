#pragma once

#include "sidecar/pipeline/job.h"

namespace dkv {

/// Errors: InvalidArgument, naming the view and what it should be, when a view has another dtype or
/// shape than the prompt, or there is nothing to rank by where the policy ranks by attention.
Result<void> check(LayerSource const& source, JobSpec const& spec, Ranking ranking);

}  // namespace dkv
