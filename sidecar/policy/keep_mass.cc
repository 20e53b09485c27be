#include "sidecar/policy/keep_mass.h"

#include <algorithm>
#include <utility>

namespace dkv {
namespace {

class KeepMass final : public Policy {
public:
    KeepMass(std::unique_ptr<Policy> ranker, PolicyParams const& params, PromptShape const& shape)
        : ranker_(std::move(ranker)),
          target_(*params.keep_mass),
          heads_alike_(params.name != "dynamickv" || params.granularity == Granularity::Layer),
          limits_(shape.kv_heads, shape.prefix()),
          budgets_(shape.layers, shape.kv_heads, shape.prefix()) {}

    Ranking ranking() const noexcept override { return ranker_->ranking(); }
    bool budgets_known() const noexcept override { return false; }
    bool budgets_known_by_layer() const noexcept override { return true; }
    bool wants_mass() const noexcept override { return true; }
    std::span<std::uint32_t const> stage_limits(std::uint32_t /*layer*/) const noexcept override {
        return limits_;
    }

    void take_mass(std::uint32_t layer, std::span<MassCurve const> curves) override {
        DKV_ASSERT(curves.size() == budgets_.kv_heads());
        auto const budgets = budgets_.layer(layer);
        if (heads_alike_) {
            std::ranges::fill(budgets, fewest(curves));
            return;
        }
        for (std::size_t head = 0; head < curves.size(); ++head)
            budgets[head] = fewest(curves.subspan(head, 1));
    }

    HeadBudgets const& budgets() const noexcept override { return budgets_; }

private:
    /// The least budget that gives these heads the target on average; all tokens where rounding
    /// errors leave even that short of it.
    std::uint32_t fewest(std::span<MassCurve const> curves) const {
        std::size_t const all = curves.front().size() - 1;
        for (std::size_t budget = 0; budget < all; ++budget) {
            double sum = 0;
            for (MassCurve const& curve : curves)
                sum += curve[budget];
            if (reaches(sum / static_cast<double>(curves.size())))
                return static_cast<std::uint32_t>(budget);
        }
        return static_cast<std::uint32_t>(all);
    }

    /// Also as the f32 that is reported: who asks for 0.95 must not be told 0.949999988.
    bool reaches(double share) const {
        return share >= target_ && double{static_cast<float>(share)} >= target_;
    }

    std::unique_ptr<Policy> ranker_;
    double target_;
    bool heads_alike_;
    std::vector<std::uint32_t> limits_;  // [kv_heads]
    HeadBudgets budgets_;
};

}  // namespace

std::unique_ptr<Policy> make_keep_mass(std::unique_ptr<Policy> ranker,
                                       PolicyParams const& params,
                                       PromptShape const& shape) {
    return std::make_unique<KeepMass>(std::move(ranker), params, shape);
}

}  // namespace dkv
