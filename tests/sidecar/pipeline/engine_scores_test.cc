#include "sidecar/pipeline/engine_scores.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "tests/sidecar/pipeline/expected.h"
#include "tests/sidecar/pipeline/job_run.h"

using namespace dkv;

namespace {

using Floats = std::vector<float>;

Geometry const kTwoQueryHeads{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 8};

/// What the engine of `prompt` would hand out: attention [q_heads, prompt], or its mean per KV
/// head, times `factor`.
struct EngineScores {
    std::vector<Floats> layers;
    std::uint32_t rows = 0;

    EngineScores(JobSpec const& spec,
                 std::vector<FakeLayer> const& prompt,
                 bool per_query_head,
                 float factor) {
        Geometry const& g = spec.geometry;
        rows = per_query_head ? g.q_heads : g.kv_heads;
        std::uint32_t const group = g.q_heads / rows;
        // The mean over the window's queries, or h2o's sum over all of them.
        std::uint32_t const queries = needs_of(spec).window;
        std::uint32_t const among = queries == spec.prompt_tokens ? 1 : queries;
        for (FakeLayer const& layer : prompt) {
            auto& scores = layers.emplace_back();
            for (std::uint32_t row = 0; row < rows; ++row) {
                Row sum(spec.prompt_tokens, 0.0);
                for (std::uint32_t i = 0; i < group; ++i) {
                    Row const attention = attention_of(spec, layer, row * group + i, queries);
                    for (std::size_t t = 0; t < sum.size(); ++t)
                        sum[t] += attention[t] / group / among;
                }
                for (double const score : sum)
                    scores.push_back(static_cast<float>(score) * factor);
            }
        }
    }

    LayerSource source(FakeLayer const& layer, std::uint32_t index) {
        LayerSource source = layer.source();
        source.queries = {};
        source.scores = dense_rows(reinterpret_cast<std::byte*>(layers[index].data()), Dtype::F32,
                                   rows, layer.keys.shape.tokens, 1);
        return source;
    }
};

}  // namespace

TEST_CASE("the engine's scores are cut to the prefix and reduced over the group") {
    // Two query heads of four tokens, the last one the window.
    Floats const rows{0.1F, 0.2F, 0.3F, 0.4F, 0.3F, 0.2F, 0.1F, 0.4F};

    auto const mean = prefix_scores(rows, kTwoQueryHeads, 4, 3, GroupReduce::Mean);
    auto const max = prefix_scores(rows, kTwoQueryHeads, 4, 3, GroupReduce::Max);
    auto const sum = prefix_scores(rows, kTwoQueryHeads, 4, 3, GroupReduce::Sum);

    CHECK(mean.scores == Floats{0.2F, 0.2F, 0.2F});
    CHECK(max.scores == Floats{0.3F, 0.2F, 0.3F});
    CHECK(sum.scores == Floats{0.4F, 0.4F, 0.4F});
    for (auto const* scores : {&mean, &max, &sum})
        CHECK(scores->mass == Floats{0.2F, 0.2F, 0.2F});
}

TEST_CASE("the engine's scores per KV head are taken as they are") {
    auto const scores = prefix_scores(Floats{1, 2, 3, 4}, kTwoQueryHeads, 4, 2, GroupReduce::Max);

    CHECK(scores.scores == Floats{1, 2});
    CHECK(scores.mass.empty());
}

TEST_CASE("scores that do not add up to 1, or are negative or no numbers, have no known mass") {
    float const nan = std::numeric_limits<float>::quiet_NaN();
    float const infinity = std::numeric_limits<float>::infinity();
    auto const mass_of = [](Floats const& rows) {
        return prefix_scores(rows, kTwoQueryHeads, 3, 2, GroupReduce::Mean).mass;
    };

    CHECK(mass_of({0.5F, 0.25F, 0.25F}) == Floats{0.5F, 0.25F});
    CHECK(mass_of({0.5F, 0.25F, 0.2505F}).size() == 2);
    CHECK(mass_of({0.5F, 0.25F, 0.26F}).empty());
    CHECK(mass_of({1.5F, -0.75F, 0.25F}).empty());
    CHECK(mass_of({nan, 0.5F, 0.5F}).empty());
    CHECK(mass_of({infinity, 0.5F, 0.5F}).empty());
    // One bad row of two is enough.
    CHECK(mass_of({0.5F, 0.25F, 0.25F, 1, 1, 1}).empty());
}

TEST_CASE("a score that is no number in one query head is none for the group") {
    float const nan = std::numeric_limits<float>::quiet_NaN();
    for (GroupReduce const reduce : {GroupReduce::Mean, GroupReduce::Max, GroupReduce::Sum}) {
        auto const scores =
            prefix_scores(Floats{nan, 1, 2, 1, 1, 2}, kTwoQueryHeads, 3, 2, reduce).scores;
        CHECK(std::isnan(scores[0]));
        CHECK_FALSE(std::isnan(scores[1]));
    }
}

TEST_CASE("the engine's own attention does what its queries would have done") {
    auto const backend = make_cpu_backend(2);
    auto const spec = small_spec();
    auto const prompt = fake_prompt(spec, 31);
    auto const by_queries = run_job(*backend, spec, prompt);

    for (bool const per_query_head : {true, false}) {
        CAPTURE(per_query_head);
        EngineScores scores(spec, prompt, per_query_head, 1.0F);
        auto const by_scores = run_job(*backend, spec, [&](std::uint32_t layer) {
            return scores.source(prompt[layer], layer);
        });

        CHECK(by_scores.destination == by_queries.destination);
        CHECK(by_scores.outcome.lengths == by_queries.outcome.lengths);
        REQUIRE(by_scores.outcome.mass_kept.size() == 5);
        for (std::size_t layer = 0; layer < 5; ++layer)
            CHECK(by_scores.outcome.mass_kept[layer] ==
                  doctest::Approx(by_queries.outcome.mass_kept[layer]).epsilon(1e-5));
    }
}

TEST_CASE("the engine's scores in another unit rank the same, but their mass is unknown") {
    auto const backend = make_cpu_backend(2);
    auto const spec = small_spec();
    auto const prompt = fake_prompt(spec, 32);
    EngineScores scores(spec, prompt, true, 4.0F);

    auto const by_scores = run_job(
        *backend, spec, [&](std::uint32_t layer) { return scores.source(prompt[layer], layer); });

    CHECK(by_scores.destination == run_job(*backend, spec, prompt).destination);
    CHECK(by_scores.outcome.mass_kept.empty());
}

TEST_CASE("the attention that an engine accumulated does what h2o would have done") {
    auto const backend = make_cpu_backend(2);
    for (bool const query_norm : {false, true}) {
        CAPTURE(query_norm);
        auto spec = small_spec("h2o");
        spec.params.query_norm = query_norm;
        auto const prompt = fake_prompt(spec, 36);
        EngineScores scores(spec, prompt, true, 1.0F);
        auto const by_scores = run_job(*backend, spec, [&](std::uint32_t layer) {
            return scores.source(prompt[layer], layer);
        });

        CHECK(by_scores.destination == run_job(*backend, spec, prompt).destination);
        CHECK(by_scores.outcome.mass_kept.empty());  // It is not the window's.
    }
}

TEST_CASE("the engine's scores may lie token by token") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec("snapkv");
    auto const prompt = fake_prompt(spec, 33);
    EngineScores scores(spec, prompt, true, 1.0F);
    Floats transposed(scores.layers[0].size());

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        for (std::size_t row = 0; row < 4; ++row)
            for (std::size_t token = 0; token < 90; ++token)
                transposed[token * 4 + row] = scores.layers[layer][row * 90 + token];
        LayerSource source = scores.source(prompt[layer], layer);
        source.scores.data = reinterpret_cast<std::byte*>(transposed.data());
        source.scores.head_stride = 1;
        source.scores.token_stride = 4;
        return source;
    });

    CHECK(run.destination == run_job(*backend, spec, prompt).destination);
}

TEST_CASE("mass is unknown as a whole when it is unknown for one layer") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec("snapkv");
    auto const prompt = fake_prompt(spec, 34);
    EngineScores scores(spec, prompt, true, 2.0F);

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        return layer == 3 ? scores.source(prompt[layer], layer) : prompt[layer].source();
    });

    CHECK(run.outcome.mass_kept.empty());
}

TEST_CASE("streamingllm needs neither queries nor scores, but then knows no mass") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec("streamingllm");
    auto const prompt = fake_prompt(spec, 35);

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        LayerSource source = prompt[layer].source();
        source.queries = {};
        return source;
    });

    CHECK(run.destination == run_job(*backend, spec, prompt).destination);
    CHECK(run.outcome.mass_kept.empty());
    CHECK(run.positions(spec.geometry, 0)[0] ==
          std::vector<std::int32_t>{0, 1, 2, 3, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89});
}

TEST_CASE("streamingllm at the capacity of its window does not claim to know the mass") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec("streamingllm");
    spec.params.capacity = 4;
    spec.params.sinks = 0;
    auto const prompt = fake_prompt(spec, 36);

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        LayerSource source = prompt[layer].source();
        source.queries = {};
        return source;
    });

    CHECK(run.outcome.mass_kept.empty());
}
