// DynamicKV (Zhou et al. 2025), native form: budgets follow from where the largest scores of all
// layers lie. Three differences from the released code, all in favour of an exact size: counts are
// not floored, what a clamped layer cannot take goes to the others in proportion, and the last
// update always runs. With a profile, budgets follow from what was measured of the model instead.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "sidecar/policy/allocate.h"
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"
#include "sidecar/policy/profile_budgets.h"
#include "sidecar/policy/rounding.h"

namespace dkv {
namespace {

/// B = r_max * base, at most the prefix. At least base, since the prefix is longer than that.
std::uint32_t stage_limit(PolicyParams const& params, PromptShape const& shape) {
    double const wanted = std::floor(params.r_max * params.base() + kRoundingSlack);
    double const limit = std::min<double>(wanted, shape.prefix());
    return std::max(params.base(), static_cast<std::uint32_t>(limit));
}

/// One threshold over all layers seen. What gets a share of the budget is a layer, with its heads
/// alike, or each head of each layer. Expected budgets count beside what was counted.
class GlobalThreshold final : public Policy {
public:
    GlobalThreshold(PolicyParams const& params,
                    PromptShape const& shape,
                    Ranking ranking,
                    std::optional<HeadBudgets> expected = {})
        : ranking_(ranking),
          expected_(std::move(expected)),
          base_(params.base()),
          update_interval_(params.update_interval),
          shares_per_layer_(params.granularity == Granularity::Layer ? 1 : shape.kv_heads),
          share_min_(least_tokens(params.r_min, params.base())),
          stage_limits_(shape.kv_heads, stage_limit(params, shape)),
          budgets_(shape.layers, shape.kv_heads, stage_limits_.front()) {}

    Ranking ranking() const noexcept override { return ranking_; }
    bool budgets_known() const noexcept override { return false; }

    std::span<std::uint32_t const> stage_limits(std::uint32_t /*layer*/) const noexcept override {
        return stage_limits_;
    }

    std::optional<std::uint64_t> tally_total(std::uint32_t layer) const noexcept override {
        std::uint32_t const layers_seen = layer + 1;
        bool const due = layers_seen % update_interval_ == 0 || layers_seen == budgets_.layers();
        if (!due) return std::nullopt;
        return std::uint64_t{base_} * budgets_.kv_heads() * layers_seen;
    }

    /// The seen layers share the budget of all layers (§3.2), within what each still has staged.
    /// Those bounds allow it at the end: they start at stage_limit >= base each, and once an update
    /// has cut, the seen layers alone hold base * layers.
    void rebalance(std::uint32_t layers_seen, std::span<std::uint64_t const> counts) override {
        DKV_ASSERT(layers_seen <= budgets_.layers());
        DKV_ASSERT(counts.size() == std::size_t{layers_seen} * budgets_.kv_heads());

        std::size_t const heads_per_share = budgets_.kv_heads() / shares_per_layer_;
        std::vector<std::uint64_t> weights;
        std::vector<std::uint32_t> lower;
        std::vector<std::uint32_t> upper;
        for (std::uint32_t layer = 0; layer < layers_seen; ++layer)
            for (std::size_t share = 0; share < shares_per_layer_; ++share) {
                auto const heads =
                    counts.subspan(weights.size() * heads_per_share, heads_per_share);
                weights.push_back(std::accumulate(heads.begin(), heads.end(), std::uint64_t{0}));
                if (expected_) weights.back() += expected_->layer(layer)[share];
                upper.push_back(budgets_.layer(layer)[share]);
                lower.push_back(std::min(share_min_, upper.back()));
            }

        std::uint64_t const total = std::uint64_t{base_} * budgets_.layers() * shares_per_layer_;
        if (std::accumulate(upper.begin(), upper.end(), std::uint64_t{0}) <= total) return;

        auto const shares = allocate(total, weights, lower, upper);
        for (std::uint32_t layer = 0; layer < layers_seen; ++layer)
            for (std::size_t head = 0; head < budgets_.kv_heads(); ++head)
                budgets_.layer(layer)[head] =
                    shares[std::size_t{layer} * shares_per_layer_ + head / heads_per_share];
    }

    HeadBudgets const& budgets() const noexcept override { return budgets_; }

private:
    Ranking ranking_;
    std::optional<HeadBudgets> expected_;  // Of heads: granularity is layer-head.
    std::uint32_t base_;
    std::uint32_t update_interval_;
    std::uint32_t shares_per_layer_;
    std::uint32_t share_min_;
    std::vector<std::uint32_t> stage_limits_;  // [kv_heads]
    HeadBudgets budgets_;
};

/// A threshold of its own in every layer (Feng et al. 2024, Ada-KV): the layers alike, their heads
/// not. Nothing has to wait for another layer.
class LayerThreshold final : public Policy {
public:
    LayerThreshold(PolicyParams const& params, PromptShape const& shape, Ranking ranking)
        : ranking_(ranking),
          total_(std::uint64_t{params.base()} * shape.kv_heads),
          least_(shape.kv_heads, least_tokens(params.r_min, params.base())),
          stage_limits_(shape.kv_heads, stage_limit(params, shape)),
          budgets_(shape.layers, shape.kv_heads, stage_limits_.front()) {}

    Ranking ranking() const noexcept override { return ranking_; }
    bool budgets_known() const noexcept override { return false; }
    bool budgets_known_by_layer() const noexcept override { return true; }
    std::span<std::uint32_t const> stage_limits(std::uint32_t /*layer*/) const noexcept override {
        return stage_limits_;
    }

    std::optional<std::uint64_t> tally_total(std::uint32_t /*layer*/) const noexcept override {
        return total_;
    }
    std::uint32_t tally_from(std::uint32_t layer) const noexcept override { return layer; }

    void rebalance(std::uint32_t layers_seen, std::span<std::uint64_t const> counts) override {
        DKV_ASSERT(counts.size() == budgets_.kv_heads());
        std::ranges::copy(allocate(total_, counts, least_, stage_limits_),
                          budgets_.layer(layers_seen - 1).begin());
    }

    HeadBudgets const& budgets() const noexcept override { return budgets_; }

private:
    Ranking ranking_;
    std::uint64_t total_;                      // Of a layer.
    std::vector<std::uint32_t> least_;         // [kv_heads]
    std::vector<std::uint32_t> stage_limits_;  // [kv_heads]
    HeadBudgets budgets_;
};

}  // namespace

std::unique_ptr<Policy> make_dynamickv(PolicyParams const& params, PromptShape const& shape) {
    return make_by_counts(params, shape, Ranking::Scores);
}

std::unique_ptr<Policy> make_foreseen(PolicyParams const& params,
                                      PromptShape const& shape,
                                      Ranking ranking) {
    HeadBudgets expected = profile_budgets(*params.profile, params.base(), shape);
    // An alpha of 0 asks for budgets that are alike, whatever a threshold says.
    if (stage_limit(params, shape) == params.base() || params.profile->alpha == 0)
        return std::make_unique<RankedBudgets>(std::move(expected), ranking);
    PolicyParams by_head = params;
    by_head.granularity = Granularity::LayerHead;
    if (ranking == Ranking::Surrogate)
        return std::make_unique<GlobalThreshold>(by_head, shape, ranking);
    return std::make_unique<GlobalThreshold>(by_head, shape, ranking, std::move(expected));
}

std::unique_ptr<Policy> make_by_counts(PolicyParams const& params,
                                       PromptShape const& shape,
                                       Ranking ranking) {
    if (params.profile)
        return std::make_unique<RankedBudgets>(
            profile_budgets(*params.profile, params.base(), shape), ranking);
    // Who may stage no more than the mean keeps the mean, and so does a head that is alone.
    bool const head_is_alone = params.granularity == Granularity::Head && shape.kv_heads == 1;
    if (stage_limit(params, shape) == params.base() || head_is_alone)
        return std::make_unique<RankedBudgets>(params, shape, ranking);
    if (params.granularity == Granularity::Head)
        return std::make_unique<LayerThreshold>(params, shape, ranking);
    return std::make_unique<GlobalThreshold>(params, shape, ranking);
}

}  // namespace dkv
