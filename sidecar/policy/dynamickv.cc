// DynamicKV (Zhou et al. 2025), native form: budgets follow from where the largest scores of all
// layers lie. Three differences from the released code, all in favour of an exact size: counts are
// not floored, what a clamped layer cannot take goes to the others in proportion, and the last
// update always runs.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "sidecar/policy/allocate.h"
#include "sidecar/policy/factories.h"

namespace dkv {
namespace {

// 0.07 * 100 is a little more than 7: that little is not a token.
constexpr double kRoundingSlack = 1e-6;

class DynamicKv final : public Policy {
public:
    DynamicKv(PolicyParams const& params, PromptShape const& shape)
        : base_(params.base()),
          update_interval_(params.update_interval),
          stage_limit_(stage_limit(params, shape)),
          layer_min_(layer_min(params)),
          stage_limits_(shape.kv_heads, stage_limit_),
          budgets_(shape.layers, shape.kv_heads, stage_limit_) {
        DKV_ASSERT(layer_min_ <= base_ && base_ <= stage_limit_);
    }

    /// A layer that may stage no more than the mean keeps the mean: there is nothing to move.
    bool budgets_known() const noexcept override { return stage_limit_ == base_; }

    std::span<std::uint32_t const> stage_limits(std::uint32_t /*layer*/) const noexcept override {
        return stage_limits_;
    }

    std::optional<std::uint64_t> tally_total(std::uint32_t layer) const noexcept override {
        std::uint32_t const layers_seen = layer + 1;
        bool const due = layers_seen % update_interval_ == 0 || layers_seen == budgets_.layers();
        if (!due || budgets_known()) return std::nullopt;
        return std::uint64_t{base_} * budgets_.kv_heads() * layers_seen;
    }

    /// The seen layers share the budget of all layers (§3.2), within what each still has staged.
    /// Those bounds allow it at the end: they start at stage_limit >= base each, and once an update
    /// has cut, the seen layers alone hold base * layers.
    void rebalance(std::uint32_t layers_seen, std::span<std::uint64_t const> counts) override {
        DKV_ASSERT(layers_seen <= budgets_.layers());
        DKV_ASSERT(counts.size() == std::size_t{layers_seen} * budgets_.kv_heads());

        std::vector<std::uint64_t> weights(layers_seen);
        std::vector<std::uint32_t> lower(layers_seen);
        std::vector<std::uint32_t> upper(layers_seen);
        for (std::uint32_t layer = 0; layer < layers_seen; ++layer) {
            auto const heads =
                counts.subspan(std::size_t{layer} * budgets_.kv_heads(), budgets_.kv_heads());
            weights[layer] = std::accumulate(heads.begin(), heads.end(), std::uint64_t{0});
            upper[layer] = budgets_.layer(layer).front();
            lower[layer] = std::min(layer_min_, upper[layer]);
        }

        std::uint64_t const total = std::uint64_t{base_} * budgets_.layers();
        if (std::accumulate(upper.begin(), upper.end(), std::uint64_t{0}) <= total) return;

        auto const shares = allocate(total, weights, lower, upper);
        for (std::uint32_t layer = 0; layer < layers_seen; ++layer)
            std::ranges::fill(budgets_.layer(layer), shares[layer]);
    }

    HeadBudgets const& budgets() const noexcept override { return budgets_; }

private:
    /// B = r_max * base, at most the prefix. At least base, since the prefix is longer than that.
    static std::uint32_t stage_limit(PolicyParams const& params, PromptShape const& shape) {
        double const wanted = std::floor(params.r_max * params.base() + kRoundingSlack);
        double const limit = std::min<double>(wanted, shape.prefix());
        return std::max(params.base(), static_cast<std::uint32_t>(limit));
    }

    static std::uint32_t layer_min(PolicyParams const& params) {
        double const wanted = std::ceil(params.r_min * params.base() - kRoundingSlack);
        return static_cast<std::uint32_t>(std::clamp<double>(wanted, 0, params.base()));
    }

    std::uint32_t base_;
    std::uint32_t update_interval_;
    std::uint32_t stage_limit_;
    std::uint32_t layer_min_;
    std::vector<std::uint32_t> stage_limits_;  // [kv_heads]
    HeadBudgets budgets_;
};

}  // namespace

std::unique_ptr<Policy> make_dynamickv(PolicyParams const& params, PromptShape const& shape) {
    return std::make_unique<DynamicKv>(params, shape);
}

}  // namespace dkv
