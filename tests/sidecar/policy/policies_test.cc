// What holds for every policy, whatever the prompt.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"
#include "tests/support/results.h"

using namespace dkv;

namespace {

enum class Attention { Even, OneLayer, SomeLayersNone, Random };

/// Counts as ops/tally could give them: they add up to min(total, entries), no head beyond N.
std::vector<std::uint64_t> counts_of(Attention attention,
                                     std::uint64_t total,
                                     std::uint32_t layers,
                                     PromptShape const& shape,
                                     std::mt19937& random) {
    std::size_t const heads = std::size_t{layers} * shape.kv_heads;
    std::uint64_t left = std::min(total, heads * std::uint64_t{shape.prefix()});
    std::vector<std::uint64_t> counts(heads, 0);
    std::uint32_t const favourite = below(random, layers);
    while (left > 0) {
        std::size_t head = random() % heads;
        if (attention == Attention::OneLayer)
            head = favourite * shape.kv_heads + below(random, shape.kv_heads);
        bool const shunned =
            attention == Attention::SomeLayersNone && head / shape.kv_heads % 2 == 1;
        std::uint64_t const chunk = attention == Attention::Even ? 10 : 1 + below(random, 50);
        std::uint64_t const taken =
            shunned ? 0 : std::min({chunk, left, shape.prefix() - counts[head]});
        counts[head] += taken;
        left -= taken;
        if (taken == 0) {  // Full or shunned: the next one with room.
            auto const next = std::ranges::find_if(
                counts, [&](std::uint64_t count) { return count < shape.prefix(); });
            ++*next;
            --left;
        }
    }
    return counts;
}

/// Curves as a layer could give them: rising to 1, with plateaus and leaps.
std::vector<MassCurve> curves_of(PromptShape const& shape, std::mt19937& random) {
    std::vector<MassCurve> curves(shape.kv_heads);
    for (MassCurve& curve : curves) {
        double share = below(random, 100) / 128.0;
        for (std::uint32_t budget = 0; budget < shape.prefix(); ++budget) {
            curve.push_back(share);
            if (below(random, 3) != 0) share += (1 - share) * below(random, 9) / 16;
        }
        curve.push_back(1);
    }
    return curves;
}

/// Each head's share of the attention, or the layer's where its heads are alike.
void check_mass(PolicyParams const& params,
                std::span<std::uint32_t const> budgets,
                std::vector<MassCurve> const& curves) {
    bool const alike = params.granularity == Granularity::Layer || params.name != "dynamickv";
    auto const share = [&](std::size_t head, bool one_less) {
        double sum = 0;
        for (std::size_t h = 0; h < curves.size(); ++h)
            if (alike || h == head) sum += curves[h][budgets[h] - (one_less ? 1 : 0)];
        return sum / (alike ? static_cast<double>(curves.size()) : 1);
    };
    for (std::size_t head = 0; head < curves.size(); ++head) {
        if (alike) REQUIRE(budgets[head] == budgets[0]);
        REQUIRE(share(head, false) >= *params.keep_mass);
        // The fewest; a hair's breadth is what f32 takes.
        if (budgets[head] > 0) REQUIRE(share(head, true) < *params.keep_mass + 1e-7);
    }
}

/// Drives `policy` over all layers as the pipeline does, checking what must hold on the way.
void run(Policy& policy,
         PolicyParams const& params,
         PromptShape const& shape,
         Attention attention,
         std::mt19937& random) {
    HeadBudgets const planned = policy.budgets();
    REQUIRE(planned.layers() == shape.layers);
    REQUIRE(planned.kv_heads() == shape.kv_heads);
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
        auto const limits = policy.stage_limits(layer);
        REQUIRE(limits.size() == shape.kv_heads);
        REQUIRE(std::ranges::equal(limits, policy.budgets().layer(layer)));
        REQUIRE(std::ranges::max(limits) <= shape.prefix());

        HeadBudgets const before = policy.budgets();
        REQUIRE(policy.wants_mass() == params.keep_mass.has_value());
        if (policy.wants_mass()) {
            auto const curves = curves_of(shape, random);
            policy.take_mass(layer, curves);
            check_mass(params, policy.budgets().layer(layer), curves);
        }
        if (auto const total = policy.tally_total(layer)) {
            REQUIRE_FALSE(policy.budgets_known());
            std::uint32_t const counted = layer + 1 - policy.tally_from(layer);
            policy.rebalance(layer + 1, counts_of(attention, *total, counted, shape, random));
        }
        bool grown = false;
        bool others_changed = false;
        for (std::uint32_t l = 0; l < shape.layers; ++l)
            for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
                grown = grown || policy.budgets().layer(l)[head] > before.layer(l)[head];
                others_changed = others_changed || (l != layer && policy.budgets().layer(l)[head] !=
                                                                      before.layer(l)[head]);
            }
        REQUIRE_FALSE(grown);
        if (policy.budgets_known_by_layer()) REQUIRE_FALSE(others_changed);
    }
    if (policy.budgets_known()) REQUIRE(policy.budgets() == planned);
}

/// Who shares what decides what adds up: everything; every layer; or every head of all layers.
void check_totals(PolicyParams const& params, HeadBudgets const& budgets, std::uint32_t layers) {
    std::uint32_t const heads = budgets.kv_heads();
    std::uint64_t const base = params.base();
    REQUIRE(budgets.total() == base * layers * heads);
    bool const dynamic =
        params.name == "dynamickv" || params.name == "auto" || params.name == "scores";
    bool const ragged = params.name == "reuse" ||
                        (dynamic && (foresees(params) ? true
                                     : params.profile ? params.profile->heads > 1
                                                      : params.granularity != Granularity::Layer));
    for (std::uint32_t head = 0; head < heads && !ragged; ++head) {
        std::uint64_t kept = 0;
        for (std::uint32_t layer = 0; layer < layers; ++layer)
            kept += budgets.layer(layer)[head];
        REQUIRE(kept == base * layers);
    }
    double const least =
        !dynamic ? 0 : (params.profile ? params.profile->floor : params.r_min) * params.base();
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
        auto const of_layer = budgets.layer(layer);
        REQUIRE(std::ranges::min(of_layer) >= least - 1e-6);
        auto const kept = std::accumulate(of_layer.begin(), of_layer.end(), std::uint64_t{0});
        if (dynamic && !params.profile && params.granularity == Granularity::Head)
            REQUIRE(kept == base * heads);
    }
}

void check_exact(PolicyParams const& params, PromptShape const& shape, std::mt19937& random) {
    CAPTURE(in_words(params));
    CAPTURE(static_cast<int>(params.granularity));
    CAPTURE(params.r_max);
    CAPTURE(params.r_min);
    CAPTURE(params.update_interval);
    CAPTURE(shape.layers);
    CAPTURE(shape.kv_heads);
    CAPTURE(shape.prompt_tokens);
    for (Attention const attention :
         {Attention::Even, Attention::OneLayer, Attention::SomeLayersNone, Attention::Random}) {
        auto const policy = make_policy(params, shape);
        std::uint32_t const whole_up_to = params.keep_mass ? params.window : params.capacity;
        bool const whole = params.name == "fullkv" || shape.prompt_tokens <= whole_up_to;
        REQUIRE((policy == nullptr) == whole);
        if (whole) return;

        run(*policy, params, shape, attention, random);
        if (params.keep_mass) return;  // Counts nothing.
        check_totals(params, policy->budgets(), shape.layers);
        if (policy->budgets_known()) return;
    }
}

/// Weights as calibration gives them, and as it should not: nobody matters, one does, all alike.
std::shared_ptr<Profile const> random_profile(PromptShape const& shape, std::mt19937& random) {
    auto profile = std::make_shared<Profile>();
    profile->layers = shape.layers;
    profile->heads = below(random, 2) ? shape.kv_heads : 1;
    profile->alpha = std::array{0.0, 0.5, 0.85, 1.0, 8.0}[below(random, 5)];
    profile->floor = std::array{0.0, 0.2, 0.333, 1.0}[below(random, 4)];
    profile->weights.assign(std::size_t{shape.layers} * profile->heads, 0);
    std::uint32_t const kind = below(random, 3);
    for (double& weight : profile->weights)
        weight = kind == 0 ? 0 : kind == 1 ? 1 : std::ldexp(below(random, 1000), -20);
    profile->weights[random() % profile->weights.size()] = 1;
    REQUIRE(check(*profile));
    return profile;
}

/// Every way to say how much, but for a plain capacity.
enum class Size { Capacity, Ratio, Bytes, Mass };

/// The params for this prompt, with its size said in another way.
PolicyParams resized(PolicyParams params,
                     Size size,
                     PromptShape const& shape,
                     std::mt19937& random) {
    Geometry const geometry{.layers = shape.layers,
                            .q_heads = shape.kv_heads,
                            .kv_heads = shape.kv_heads,
                            .head_dim = 8};
    if (size == Size::Ratio) params.ratio = (1 + below(random, 100)) / 100.0;
    if (size == Size::Bytes)
        params.bytes = geometry.cache_bytes(params.capacity) + below(random, 100);
    if (size == Size::Mass) params.keep_mass = (1 + below(random, 100)) / 100.0;
    auto const result = sized(params, geometry, shape.prompt_tokens);
    REQUIRE(result);
    return result.value();
}

}  // namespace

TEST_CASE("the registry lists every policy once, with a summary") {
    std::vector<std::string> names;
    for (PolicyEntry const& entry : policies()) {
        names.emplace_back(entry.name);
        CHECK_FALSE(entry.summary.empty());
        CHECK(static_cast<bool>(entry.make));
    }
    CHECK(names == std::vector<std::string>{"auto", "fullkv", "streamingllm", "h2o", "snapkv",
                                            "pyramidkv", "dynamickv", "knorm", "keydiff", "reuse",
                                            "scores"});
}

TEST_CASE("a prompt that fits is kept whole by every policy") {
    for (PolicyEntry const& entry : policies()) {
        auto params = params_of(std::string(entry.name).c_str(), 64, 32);
        std::mt19937 random(1);
        if (entry.name == "reuse") params.profile = random_profile(shape_of(4, 2, 65, 32), random);
        for (std::uint32_t tokens : {1U, 31U, 32U, 33U, 63U, 64U}) {
            CAPTURE(entry.name);
            CAPTURE(tokens);
            CHECK_FALSE(make_policy(params, shape_of(4, 2, tokens, 32)));
        }
        CHECK((make_policy(params, shape_of(4, 2, 65, 32)) == nullptr) == (entry.name == "fullkv"));
    }
}

TEST_CASE("every policy keeps exactly its capacity on awkward prompts") {
    std::uint32_t const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    struct Case {
        std::uint32_t capacity, window, layers, tokens;
    };
    constexpr std::array cases{
        Case{8, 8, 30, 7},      // shorter than the window
        Case{8, 8, 30, 8},      // just the window
        Case{8, 8, 30, 9},      // base 0, one prefix token
        Case{8, 8, 30, 500},    // base 0
        Case{9, 8, 30, 10},     // N = 2 < L
        Case{12, 8, 30, 20},    // N = 12 < L
        Case{20, 8, 30, 39},    // n just above window + L
        Case{64, 8, 30, 63},    // n below the capacity
        Case{64, 8, 30, 64},    // n is the capacity
        Case{64, 8, 30, 65},    // n just above the capacity; budgets above N must be redistributed
        Case{64, 8, 7, 100},    // r_max * base > N, L no multiple of m
        Case{16, 8, 1, 100},    // one layer
        Case{16, 8, 4, 100},    // L == m
        Case{16, 8, 5, 10000},  // B < N
        Case{512, 32, 30, 4096},
    };
    for (Case const& c : cases)
        for (PolicyEntry const& entry : policies())
            for (std::uint32_t const kv_heads : {1U, 3U, 8U}) {
                auto const shape = shape_of(c.layers, kv_heads, c.tokens, c.window);
                auto params = params_of(std::string(entry.name).c_str(), c.capacity, c.window);
                for (Granularity const granularity :
                     {Granularity::Layer, Granularity::Head, Granularity::LayerHead}) {
                    params.granularity = granularity;
                    if (entry.name == "reuse") params.profile = random_profile(shape, random);
                    check_exact(params, shape, random);
                }
                params.profile = random_profile(shape, random);
                check_exact(params, shape, random);
                params.keep_mass = 0.9;
                if (resolve({.name = params.name, .keep_mass = 0.9}))
                    check_exact(params, shape, random);
            }
}

TEST_CASE("every policy keeps exactly its size on random prompts") {
    std::uint32_t const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    for (int round = 0; round < 50; ++round) {
        CAPTURE(round);
        std::uint32_t const window = 1 + below(random, 40);
        std::uint32_t const tokens = 1 + below(random, below(random, 2) ? 300 : 3000);
        auto const shape = shape_of(1 + below(random, 40), 1 + below(random, 8), tokens, window);
        PolicyParams params;
        params.window = window;
        params.capacity = window + (below(random, 8) == 0 ? 0 : below(random, 200));
        params.r_max = std::array{1.0, 1.01, 1.5, 5.0, 10.0}[below(random, 5)];
        params.r_min = std::array{0.0, 0.1, 0.333, 0.999, 1.0}[below(random, 5)];
        params.update_interval = 1 + below(random, 9);
        params.sinks = std::min(params.base(), below(random, 8));
        params.beta = 1.0 + below(random, 40);
        params.granularity = static_cast<Granularity>(below(random, 3));
        if (below(random, 3) == 0) params.profile = random_profile(shape, random);
        for (PolicyEntry const& entry : policies())
            for (Size const size : {Size::Capacity, Size::Ratio, Size::Bytes, Size::Mass}) {
                params.name = entry.name;
                if (entry.name == "reuse") continue;  // Refused without a surrogate.
                if (size == Size::Mass && !resolve({.name = params.name, .keep_mass = 0.5}))
                    continue;
                check_exact(resized(params, size, shape, random), shape, random);
            }
    }
}

TEST_CASE("auto follows a profile, and without one treats every layer alike, with a wider kernel") {
    PolicyRequest request{.name = "auto", .capacity = 14, .window = 4};
    CHECK(resolve(request).value().kernel == 15);
    auto const alike = make_policy(resolve(request).value(), shape_of(2, 2, 104, 4));
    CHECK(alike->budgets_known());
    CHECK(alike->budgets() == HeadBudgets(2, 2, 10));

    request.profile = std::make_shared<Profile>(
        Profile{.name = "p", .layers = 2, .heads = 1, .weights = {3, 1}, .kernel = 9});
    CHECK(resolve(request).value().kernel == 9);
    auto const measured = make_policy(resolve(request).value(), shape_of(2, 2, 104, 4));
    CHECK(measured->budgets().layer(0)[1] == 15);
    CHECK(measured->budgets().layer(1)[1] == 5);
}

TEST_CASE("for an engine with one table of cells every policy keeps its capacity in each head") {
    PromptShape shape = shape_of(6, 2, 400, 8);
    for (PolicyEntry const& entry : policies()) {
        if (entry.name == "fullkv" || entry.name == "reuse") continue;  // reuse wants a profile.
        CAPTURE(entry.name);
        auto const params = params_of(std::string(entry.name).c_str(), 64, 8);
        shape.window = params.window;
        shape.uniform = false;
        auto const usual = make_policy(params, shape);
        shape.uniform = true;

        auto const policy = make_policy(params, shape);

        CHECK(policy->ranking() == usual->ranking());
        CHECK(policy->budgets_known());
        CHECK(policy->budgets() == HeadBudgets(shape.layers, shape.kv_heads, params.base()));
    }
}
