// Learned attention sinks (gpt-oss): one logit per query head that each softmax of the head has
// beside its tokens'. A sink has no row of keys or values: it takes a share and gives nothing.
#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Errors: InvalidArgument, naming the value, unless `sink_logits` is empty (no sinks) or has one
/// finite number per query head: "sink_logits has 3 values, not 9: one per query head".
Result<void> check_sink_logits(std::span<float const> sink_logits, std::uint32_t q_heads);

}  // namespace dkv
