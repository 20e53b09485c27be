// StreamingLLM (Xiao et al. 2024): attention sinks and the most recent tokens. Needs no scores.
#include <numeric>

#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {
namespace {

class StreamingLlm final : public KnownBudgets {
public:
    StreamingLlm(PolicyParams const& params, PromptShape const& shape)
        : KnownBudgets(HeadBudgets(shape.layers, shape.kv_heads, params.base())),
          sinks_(params.sinks),
          prefix_(shape.prefix()) {
        DKV_ASSERT(sinks_ <= params.base() && params.base() < prefix_);
    }

    Ranking ranking() const noexcept override { return Ranking::Positions; }

    /// 0 … sinks-1, then N-1, N-2, … sinks.
    std::vector<std::int32_t> ranked_positions() const override {
        std::vector<std::int32_t> positions(prefix_);
        std::iota(positions.begin(), positions.begin() + sinks_, 0);
        std::iota(positions.rbegin(), positions.rend() - sinks_, static_cast<std::int32_t>(sinks_));
        return positions;
    }

private:
    std::uint32_t sinks_;
    std::uint32_t prefix_;
};

}  // namespace

std::unique_ptr<Policy> make_streamingllm(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<StreamingLlm>(params, shape);
}

}  // namespace dkv
