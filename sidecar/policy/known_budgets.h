// The policies whose budgets do not depend on scores.
#pragma once

#include <utility>

#include "sidecar/policy/policy.h"

namespace dkv {

/// Budgets that are final before the first layer.
class KnownBudgets : public Policy {
public:
    explicit KnownBudgets(HeadBudgets budgets) : budgets_(std::move(budgets)) {}

    bool budgets_known() const noexcept override { return true; }
    std::span<std::uint32_t const> stage_limits(std::uint32_t layer) const noexcept override {
        return budgets_.layer(layer);
    }
    HeadBudgets const& budgets() const noexcept override { return budgets_; }

private:
    HeadBudgets budgets_;
};

/// Of tokens in another order than by the window's attention.
class RankedBudgets final : public KnownBudgets {
public:
    RankedBudgets(HeadBudgets budgets, Ranking ranking)
        : KnownBudgets(std::move(budgets)), ranking_(ranking) {}
    /// The same in every layer and head.
    RankedBudgets(PolicyParams const& params, PromptShape const& shape, Ranking ranking)
        : RankedBudgets(HeadBudgets(shape.layers, shape.kv_heads, params.base()), ranking) {}

    Ranking ranking() const noexcept override { return ranking_; }

private:
    Ranking ranking_;
};

}  // namespace dkv
