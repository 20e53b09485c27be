#include <algorithm>
#include <array>
#include <numeric>

#include "sidecar/policy/factories.h"
#include "sidecar/policy/keep_mass.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {
namespace {

using enum Trait;

constexpr std::array kPolicies{
    PolicyEntry{"auto", Traits(Sized, Attention, Pooled, Profiled, Purposed),
                "the best that was measured: budgets of a profile, and its surrogate beside what "
                "the last tokens attend to; snapkv without, kernel 15",
                make_auto},
    PolicyEntry{"fullkv", Traits(), "keep every token", make_fullkv},
    PolicyEntry{"streamingllm", Traits(Sized, Sinks),
                "the first tokens and the most recent ones; needs no queries", make_streamingllm},
    PolicyEntry{
        "h2o", Traits(Sized, Attention, EveryQuery),
        "what all tokens of the prompt attend to, as much in every layer; needs every query",
        make_h2o},
    PolicyEntry{"snapkv", Traits(Sized, Attention, Pooled),
                "what the last tokens attend to, as much in every layer", make_snapkv},
    PolicyEntry{"pyramidkv", Traits(Sized, Attention, Pooled, Pyramid),
                "what the last tokens attend to, more in early layers than in late ones",
                make_pyramidkv},
    PolicyEntry{"dynamickv", Traits(Sized, Attention, Pooled, Staged, Profiled, Sinks),
                "what the last tokens attend to, more in the layers where attention concentrates",
                make_dynamickv},
    PolicyEntry{"knorm", Traits(Sized), "query-free: the smallest keys, as much in every layer",
                make_knorm},
    PolicyEntry{"keydiff", Traits(Sized),
                "query-free: the keys least like their mean direction, as much in every layer",
                make_keydiff},
    PolicyEntry{"reuse", Traits(Sized, Profiled),
                "query-free: what later text will attend to, foreseen by a profile's surrogate",
                make_reuse},
    PolicyEntry{"scores", Traits(Sized, Staged, Profiled, Sinks, Given),
                "by scores that the engine sends with each layer", make_scores},
};

constexpr std::array<std::string_view, 6> kReferenceForms{"dynamickv-ref",  "snapkv-ref",
                                                          "pyramidkv-ref",  "streamingllm-ref",
                                                          "snapkv-kvpress", "h2o-kvpress"};

}  // namespace

std::span<std::string_view const> reference_forms() noexcept {
    return kReferenceForms;
}

std::span<PolicyEntry const> policies() noexcept {
    return kPolicies;
}

PolicyEntry const& entry_of(std::string_view name) noexcept {
    auto const* const entry = std::ranges::find(kPolicies, name, &PolicyEntry::name);
    DKV_ASSERT(entry != kPolicies.end());
    return *entry;
}

bool takes_own_profile(std::string_view name) noexcept {
    auto const* const entry = std::ranges::find(kPolicies, name, &PolicyEntry::name);
    return entry != kPolicies.end() && entry->traits.has(Trait::Profiled) &&
           !entry->traits.has(Trait::Staged);
}

bool foresees(PolicyParams const& params) noexcept {
    if (!params.profile || !params.profile->surrogate || !takes_own_profile(params.name))
        return false;
    bool const asked_not_to = entry_of(params.name).traits.has(Trait::Purposed) &&
                              params.purpose == Purpose::ThisQuestion;
    // A share of the window's attention says nothing of later questions.
    return !params.keep_mass && !asked_not_to;
}

std::unique_ptr<Policy> make_policy(PolicyParams const& params, PromptShape const& shape) {
    DKV_ASSERT(shape.window == params.window && shape.layers > 0 && shape.kv_heads > 0);
    PolicyEntry const& entry = entry_of(params.name);
    if (!params.keep_mass) {
        auto policy = shape.prompt_tokens <= params.capacity ? nullptr : entry.make(params, shape);
        // By position alone there is one budget already.
        if (policy == nullptr || !shape.uniform || policy->ranking() == Ranking::Positions)
            return policy;
        return std::make_unique<RankedBudgets>(params, shape, policy->ranking());
    }

    DKV_ASSERT(!shape.uniform);
    if (shape.prompt_tokens <= shape.window) return nullptr;
    PolicyParams unsized = params;
    unsized.capacity = params.window;
    auto ranker = entry.make(unsized, shape);
    return ranker == nullptr ? nullptr : make_keep_mass(std::move(ranker), params, shape);
}

std::uint64_t HeadBudgets::total() const noexcept {
    return std::accumulate(tokens_.begin(), tokens_.end(), std::uint64_t{0});
}

}  // namespace dkv
