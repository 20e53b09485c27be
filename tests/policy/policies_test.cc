// What holds for every policy, whatever the prompt.
#include <algorithm>
#include <array>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "tests/policy/support.h"

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

/// Drives `policy` over all layers as the pipeline does, checking what must hold on the way.
void run(Policy& policy, PromptShape const& shape, Attention attention, std::mt19937& random) {
    HeadBudgets const planned = policy.budgets();
    REQUIRE(planned.layers() == shape.layers);
    REQUIRE(planned.kv_heads() == shape.kv_heads);
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
        auto const limits = policy.stage_limits(layer);
        REQUIRE(limits.size() == shape.kv_heads);
        REQUIRE(std::ranges::equal(limits, policy.budgets().layer(layer)));
        for (std::uint32_t const limit : limits)
            REQUIRE(limit <= shape.prefix());

        auto const total = policy.tally_total(layer);
        if (!total) continue;
        REQUIRE_FALSE(policy.budgets_known());
        HeadBudgets const before = policy.budgets();
        policy.rebalance(layer + 1, counts_of(attention, *total, layer + 1, shape, random));
        bool grown = false;
        for (std::uint32_t l = 0; l < shape.layers; ++l)
            for (std::uint32_t head = 0; head < shape.kv_heads; ++head)
                grown = grown || policy.budgets().layer(l)[head] > before.layer(l)[head];
        REQUIRE_FALSE(grown);
    }
    if (policy.budgets_known()) REQUIRE(policy.budgets() == planned);
}

void check_exact(PolicyParams const& params, PromptShape const& shape, std::mt19937& random) {
    CAPTURE(params.name);
    CAPTURE(params.capacity);
    CAPTURE(params.window);
    CAPTURE(params.r_max);
    CAPTURE(params.r_min);
    CAPTURE(params.update_interval);
    CAPTURE(shape.layers);
    CAPTURE(shape.kv_heads);
    CAPTURE(shape.prompt_tokens);
    for (Attention const attention :
         {Attention::Even, Attention::OneLayer, Attention::SomeLayersNone, Attention::Random}) {
        auto const policy = make_policy(params, shape);
        bool const whole = params.name == "fullkv" || shape.prompt_tokens <= params.capacity;
        REQUIRE((policy == nullptr) == whole);
        if (whole) return;

        run(*policy, shape, attention, random);

        // Exact for every KV head, not only in sum.
        for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
            std::uint64_t kept = 0;
            for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
                kept += policy->budgets().layer(layer)[head];
            REQUIRE(kept == std::uint64_t{params.base()} * shape.layers);
        }
        if (params.name != "dynamickv") continue;
        for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
            REQUIRE(policy->budgets().layer(layer)[0] >= params.r_min * params.base() - 1e-6);
    }
}

}  // namespace

TEST_CASE("the registry lists every policy once, with a summary") {
    std::vector<std::string> names;
    for (PolicyEntry const& entry : policies()) {
        names.emplace_back(entry.name);
        CHECK_FALSE(entry.summary.empty());
        CHECK(static_cast<bool>(entry.make));
    }
    CHECK(names ==
          std::vector<std::string>{"fullkv", "streamingllm", "snapkv", "pyramidkv", "dynamickv"});
}

TEST_CASE("a prompt that fits is kept whole by every policy") {
    for (PolicyEntry const& entry : policies()) {
        auto const params = params_of(std::string(entry.name).c_str(), 64, 32);
        for (std::uint32_t tokens : {1U, 31U, 32U, 33U, 63U, 64U}) {
            CAPTURE(entry.name);
            CAPTURE(tokens);
            CHECK_FALSE(make_policy(params, shape_of(4, 2, tokens, 32)));
        }
        CHECK((make_policy(params, shape_of(4, 2, 65, 32)) == nullptr) == (entry.name == "fullkv"));
    }
}

TEST_CASE("every policy keeps exactly its capacity on awkward prompts") {
    std::uint32_t const seed = 7;
    INFO("seed " << seed);
    std::mt19937 random(seed);
    struct Case {
        std::uint32_t capacity, window, layers, tokens;
    };
    constexpr std::array cases{
        Case{8, 8, 30, 9},      // base 0, one prefix token
        Case{8, 8, 30, 500},    // base 0
        Case{9, 8, 30, 10},     // N = 2 < L
        Case{12, 8, 30, 20},    // N = 12 < L
        Case{20, 8, 30, 39},    // n just above window + L
        Case{64, 8, 30, 65},    // n just above the capacity; budgets above N must be redistributed
        Case{64, 8, 7, 100},    // r_max * base > N, L no multiple of m
        Case{16, 8, 1, 100},    // one layer
        Case{16, 8, 4, 100},    // L == m
        Case{16, 8, 5, 10000},  // B < N
        Case{512, 32, 30, 4096},
    };
    for (Case const& c : cases)
        for (PolicyEntry const& entry : policies())
            for (std::uint32_t kv_heads : {1U, 3U, 8U})
                check_exact(params_of(std::string(entry.name).c_str(), c.capacity, c.window),
                            shape_of(c.layers, kv_heads, c.tokens, c.window), random);
}

TEST_CASE("every policy keeps exactly its capacity on random prompts") {
    std::uint32_t const seed = 20250722;
    INFO("seed " << seed);
    std::mt19937 random(seed);
    for (int round = 0; round < 200; ++round) {
        CAPTURE(round);
        std::uint32_t const window = 1 + below(random, 40);
        PolicyParams params;
        params.window = window;
        params.capacity = window + (below(random, 8) == 0 ? 0 : below(random, 200));
        params.r_max = std::array{1.0, 1.01, 1.5, 5.0, 10.0}[below(random, 5)];
        params.r_min = std::array{0.0, 0.1, 0.333, 0.999, 1.0}[below(random, 5)];
        params.update_interval = 1 + below(random, 9);
        params.sinks = std::min(params.base(), below(random, 8));
        params.beta = 1.0 + below(random, 40);
        std::uint32_t const tokens = 1 + below(random, below(random, 2) ? 300 : 3000);
        auto const shape = shape_of(1 + below(random, 40), 1 + below(random, 8), tokens, window);
        for (PolicyEntry const& entry : policies()) {
            params.name = entry.name;
            check_exact(params, shape, random);
        }
    }
}
