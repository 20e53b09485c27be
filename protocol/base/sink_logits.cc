#include "protocol/base/sink_logits.h"

#include <cmath>
#include <string>

namespace dkv {

Result<void> check_sink_logits(std::span<float const> sink_logits, std::uint32_t q_heads) {
    if (sink_logits.empty()) return {};
    if (sink_logits.size() != q_heads)
        return Error{ErrorCode::InvalidArgument,
                     "sink_logits has " + std::to_string(sink_logits.size()) + " values, not " +
                         std::to_string(q_heads) + ": one per query head"};
    for (std::size_t head = 0; head < sink_logits.size(); ++head)
        if (!std::isfinite(sink_logits[head]))
            return Error{ErrorCode::InvalidArgument,
                         "sink_logits[" + std::to_string(head) + "] is " +
                             std::to_string(sink_logits[head]) + ", not a finite number"};
    return {};
}

}  // namespace dkv
