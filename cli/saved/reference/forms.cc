#include "cli/saved/reference/forms.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include <fmt/format.h>

#include "cli/saved/reference/baselines_ref.h"
#include "cli/saved/reference/dynamickv_ref.h"
#include "cli/saved/reference/torch_ops.h"
#include "sidecar/policy/policy.h"

namespace dkv::reference {
namespace {

using Lists = std::vector<std::vector<HeadList>>;

struct Setup {
    PolicyParams params;
    Geometry geometry;
    std::uint32_t tokens = 0;

    std::uint32_t window() const noexcept { return std::min(params.window, tokens); }
    std::uint32_t prefix() const noexcept { return tokens - window(); }
    ClusterParams cluster() const {
        return {.layers = geometry.layers,
                .prompt_tokens = tokens,
                .capacity = params.capacity,
                .window = params.window,
                .beta = static_cast<std::uint32_t>(params.beta)};
    }
};

HeadList every_position(std::uint32_t tokens) {
    HeadList list(tokens);
    std::iota(list.begin(), list.end(), 0);
    return list;
}

/// Summed over the window, pooled. [q_heads, prefix]
Result<std::vector<float>> pooled_window(Setup const& setup,
                                         AttentionInput const& layer,
                                         float divisor) {
    auto sums = DKV_TRY(attention_sums(layer, setup.window(), setup.prefix()));
    for (float& sum : sums)
        sum = rounded_to(layer.dtype, sum / divisor);
    auto pooled = DKV_TRY(pool1d(sums, layer.q_heads, setup.params.pool, setup.params.kernel));
    for (float& score : pooled)
        score = rounded_to(layer.dtype, score);
    return pooled;
}

class FormBase : public Form {
public:
    explicit FormBase(Setup setup) : setup_(std::move(setup)) {}

    std::uint32_t queries_wanted() const noexcept override { return setup_.window(); }
    std::vector<std::vector<HeadList>> const& stored() const noexcept override { return stored_; }

protected:
    Setup const setup_;
    Lists stored_;
};

class DynamicKv final : public FormBase {
public:
    DynamicKv(Setup setup, DynamicKvRef policy)
        : FormBase(std::move(setup)), policy_(std::move(policy)) {}

    Result<void> add_layer(AttentionInput const& layer) override {
        std::vector<float> pooled;
        if (setup_.prefix() > 0) pooled = DKV_TRY(pooled_window(setup_, layer, 1));
        return policy_.add_layer(pooled);
    }
    std::vector<std::vector<HeadList>> const& stored() const noexcept override {
        return policy_.stored();
    }

private:
    DynamicKvRef policy_;
};

/// KVCache-Factory's SnapKV and PyramidKV.
class Clusters final : public FormBase {
public:
    Clusters(Setup setup, LayerBudgets budgets)
        : FormBase(std::move(setup)), budgets_(std::move(budgets)) {}

    Result<void> add_layer(AttentionInput const& layer) override {
        if (!budgets_ || setup_.prefix() == 0) {
            stored_.emplace_back(layer.q_heads, every_position(setup_.tokens));
            return {};
        }
        auto const pooled = DKV_TRY(pooled_window(setup_, layer, 1));
        stored_.push_back(DKV_TRY(
            select_ref(pooled, layer.q_heads, (*budgets_)[stored_.size()], setup_.window())));
        return {};
    }

private:
    LayerBudgets budgets_;
};

class Streaming final : public FormBase {
public:
    Streaming(Setup setup, HeadList list) : FormBase(std::move(setup)), list_(std::move(list)) {}

    std::uint32_t queries_wanted() const noexcept override { return 0; }
    Result<void> add_layer(AttentionInput const& /*layer*/) override {
        stored_.emplace_back(setup_.geometry.q_heads, list_);
        return {};
    }

private:
    HeadList list_;
};

/// What leaves exactly `capacity` of `tokens`, half a token away from either neighbour.
double ratio_of(Setup const& setup) {
    if (setup.params.capacity >= setup.tokens) return 0;
    return 1 - (setup.params.capacity + 0.5) / setup.tokens;
}

class SnapKvPress final : public FormBase {
public:
    using FormBase::FormBase;

    Result<void> add_layer(AttentionInput const& layer) override {
        auto const pooled =
            DKV_TRY(pooled_window(setup_, layer, static_cast<float>(setup_.window())));
        auto const mean =
            DKV_TRY(group_mean(pooled, layer.kv_heads, layer.q_heads / layer.kv_heads));
        stored_.push_back(DKV_TRY(
            select_snapkv_kvpress(mean, layer.kv_heads, setup_.window(), ratio_of(setup_))));
        return {};
    }
};

class H2oPress final : public FormBase {
public:
    using FormBase::FormBase;

    std::uint32_t queries_wanted() const noexcept override { return setup_.tokens; }
    Result<void> add_layer(AttentionInput const& layer) override {
        auto const sums = DKV_TRY(attention_sums(layer, setup_.tokens, setup_.tokens));
        stored_.push_back(DKV_TRY(select_h2o_kvpress(sums, layer.q_heads, layer.kv_heads,
                                                     layer.dtype, ratio_of(setup_))));
        return {};
    }
};

template <class T, class... Args>
Result<std::unique_ptr<Form>> made(Args&&... args) {
    return std::unique_ptr<Form>(std::make_unique<T>(std::forward<Args>(args)...));
}

}  // namespace

Result<std::unique_ptr<Form>> make_form(std::string_view name,
                                        PolicyParams const& params,
                                        Geometry const& geometry,
                                        std::uint32_t prompt_tokens) {
    Setup const setup{params, geometry, prompt_tokens};
    if (name == "dynamickv-ref") {
        auto policy = DKV_TRY(DynamicKvRef::create({.layers = geometry.layers,
                                                    .heads = geometry.q_heads,
                                                    .prompt_tokens = prompt_tokens,
                                                    .window = params.window,
                                                    .base = params.base(),
                                                    .r_max = params.r_max,
                                                    .update_interval = params.update_interval}));
        return made<DynamicKv>(setup, std::move(policy));
    }
    if (name == "snapkv-ref")
        return made<Clusters>(setup, DKV_TRY(snapkv_ref_budgets(setup.cluster())));
    if (name == "pyramidkv-ref") {
        if (params.beta != std::floor(params.beta))
            return Error{
                ErrorCode::InvalidArgument,
                fmt::format("beta is {}, and the published code takes whole numbers", params.beta)};
        return made<Clusters>(setup, DKV_TRY(pyramidkv_ref_budgets(setup.cluster())));
    }
    if (name == "streamingllm-ref")
        return made<Streaming>(setup, DKV_TRY(streamingllm_ref(setup.cluster())));
    if (name == "snapkv-kvpress") return made<SnapKvPress>(setup);
    if (name == "h2o-kvpress") return made<H2oPress>(setup);
    std::string known;
    for (std::string_view const form : reference_forms())
        known += (known.empty() ? "" : ", ") + std::string(form);
    return Error{ErrorCode::NotFound,
                 fmt::format("no reference form is called \"{}\"; there are {}", name, known)};
}

}  // namespace dkv::reference
