#pragma once

#include "sidecar/pipeline/job.h"

namespace dkv {

/// The sidecar's door for a layer: what a job takes without looking again.
///
/// Errors: InvalidArgument, naming the value and what it should be, when a view has another dtype
/// or shape than the prompt, there is nothing to rank by where the policy ranks by attention, or
/// scale, softcap or a sink's logit cannot be.
Result<void> check(LayerSource const& source, JobSpec const& spec);

}  // namespace dkv
