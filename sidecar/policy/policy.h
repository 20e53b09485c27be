// What a policy is: shapes and counts in, budgets out. Pure host arithmetic: no pointer to a cache,
// no device, clock, IO or log.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "sidecar/policy/params.h"

namespace dkv {

/// What one prompt's cache looks like to a policy.
struct PromptShape {
    std::uint32_t layers = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t prompt_tokens = 0;  ///< n
    std::uint32_t window = 0;         ///< ws
    bool uniform = false;  ///< Every head keeps the capacity: the engine has one table of cells.
    std::uint32_t prefix() const noexcept { return prompt_tokens - window; }  ///< N = n - ws
};

/// Prefix tokens per layer and KV head; the window is kept on top of them.
class HeadBudgets {
public:
    HeadBudgets() = default;
    HeadBudgets(std::uint32_t layers, std::uint32_t kv_heads, std::uint32_t tokens)
        : kv_heads_(kv_heads), tokens_(std::size_t{layers} * kv_heads, tokens) {}

    std::uint32_t layers() const noexcept {
        return kv_heads_ == 0 ? 0 : static_cast<std::uint32_t>(tokens_.size() / kv_heads_);
    }
    std::uint32_t kv_heads() const noexcept { return kv_heads_; }
    /// [kv_heads]
    std::span<std::uint32_t> layer(std::uint32_t index) noexcept {
        return std::span(tokens_).subspan(std::size_t{index} * kv_heads_, kv_heads_);
    }
    std::span<std::uint32_t const> layer(std::uint32_t index) const noexcept {
        return std::span(tokens_).subspan(std::size_t{index} * kv_heads_, kv_heads_);
    }
    std::uint64_t total() const noexcept;
    bool operator==(HeadBudgets const&) const = default;

private:
    std::uint32_t kv_heads_ = 0;
    std::vector<std::uint32_t> tokens_;
};

/// Which prefix tokens a policy prefers.
enum class Ranking : std::uint8_t {
    Scores,         ///< By the window's attention, pooled.
    Accumulated,    ///< By the attention of all queries: ops/accumulate.
    KeyNorm,        ///< By the keys alone: ops/key_score.
    KeyDifference,  ///< Likewise.
    Surrogate,      ///< By the profile's surrogate, from keys and values alone.
    Joined,         ///< By the larger of the window's attention and what the surrogate foresees.
    Given,          ///< By scores that come with the layer.
    Positions       ///< By position alone: ranked_positions() says how.
};

/// The share of the window's attention on the window and a head's best b tokens, for b = 0 … N.
using MassCurve = std::vector<double>;

/// One policy over one prompt with more than `capacity` tokens. The pipeline calls, for each layer
/// in order: stage_limits(l), and after it has ranked the layer, take_mass() where wants_mass(),
/// and tally_total(l); where that has a value, rebalance() with the counts. After the last layer
/// budgets() is final. Calls for a layer may be made again, with the same numbers.
class Policy {
public:
    virtual ~Policy() = default;

    virtual Ranking ranking() const noexcept { return Ranking::Scores; }

    /// Ranking::Positions: every prefix position, the one to keep first first. [N]
    virtual std::vector<std::int32_t> ranked_positions() const { return {}; }

    /// Whether budgets() is final before the first layer: then a layer is cut to its final size as
    /// soon as it is scored.
    virtual bool budgets_known() const noexcept = 0;

    /// Whether a layer's budgets are final after the calls for that layer: then it is packed before
    /// the next one comes.
    virtual bool budgets_known_by_layer() const noexcept { return budgets_known(); }

    /// The most prefix tokens each head of this layer can still get. [kv_heads]
    virtual std::span<std::uint32_t const> stage_limits(std::uint32_t layer) const noexcept = 0;

    /// After this layer: how many of the largest scores of the layers tally_from(layer) … layer to
    /// count, or nothing when no update is due.
    virtual std::optional<std::uint64_t> tally_total(std::uint32_t /*layer*/) const noexcept {
        return std::nullopt;
    }
    virtual std::uint32_t tally_from(std::uint32_t /*layer*/) const noexcept { return 0; }

    /// Re-cuts the layers that were counted, up to layers_seen - 1. counts [layers, kv_heads], as
    /// ops/tally gives them. No budget grows beyond what the layer still has staged.
    virtual void rebalance(std::uint32_t /*layers_seen*/,
                           std::span<std::uint64_t const> /*counts*/) {}

    /// Whether budgets follow from the mass.
    virtual bool wants_mass() const noexcept { return false; }
    /// The layer's curves, of its tokens in rank order. [kv_heads]
    virtual void take_mass(std::uint32_t /*layer*/, std::span<MassCurve const> /*curves*/) {}

    /// The budgets as they stand. Layers not seen yet have their stage limit.
    virtual HeadBudgets const& budgets() const noexcept = 0;
};

/// A line of the registry: what `dkv policy list` shows.
struct PolicyEntry {
    std::string_view name;
    Traits traits;
    std::string_view summary;
    /// For a prompt longer than the capacity. Makes nullptr when everything is kept (fullkv).
    std::unique_ptr<Policy> (*make)(PolicyParams const&, PromptShape const&);
};

/// Every policy, in the order in which `dkv policy list` shows them.
std::span<PolicyEntry const> policies() noexcept;

/// `name` is one of theirs.
PolicyEntry const& entry_of(std::string_view name) noexcept;

/// Whether a profile that was not asked for, the model's own, is for this policy: not where it has
/// a rule of its own for budgets. False for an unknown name.
bool takes_own_profile(std::string_view name) noexcept;

/// Whether later questions have a say: the profile's surrogate ranks, alone or with the window.
bool foresees(PolicyParams const& params) noexcept;

/// The published codes' forms, in cli/saved/reference: nothing that a sidecar runs.
std::span<std::string_view const> reference_forms() noexcept;

/// The policy for this prompt, or nullptr when it is kept whole: fullkv, or prompt_tokens <=
/// capacity (which says nothing where there is keep_mass), or prompt_tokens <= window. `params`
/// come from resolve() and sized(). For a uniform shape it ranks as the policy does; not with
/// keep_mass.
std::unique_ptr<Policy> make_policy(PolicyParams const& params, PromptShape const& shape);

}  // namespace dkv
