// Granularities, norms, profiles and shares of the attention, through whole jobs.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "tests/sidecar/pipeline/expected.h"
#include "tests/sidecar/pipeline/job_run.h"

using namespace dkv;

namespace {

constexpr std::array kGranularities{Granularity::Layer, Granularity::Head, Granularity::LayerHead};
constexpr std::array kNorms{ScoreNorm::None, ScoreNorm::Layer, ScoreNorm::LayerNoSink};

PromptShape shape_of_prompt(JobSpec const& spec) {
    return {spec.geometry.layers, spec.geometry.kv_heads, spec.prompt_tokens, spec.params.window};
}

std::vector<ExpectedLayer> expected_layers(JobSpec const& spec,
                                           std::vector<FakeLayer> const& prompt) {
    auto const policy = make_policy(spec.params, shape_of_prompt(spec));
    std::vector<ExpectedLayer> layers;
    for (FakeLayer const& layer : prompt)
        layers.push_back(expected_layer(spec, layer, *policy));
    return layers;
}

/// The pooled scores as they are to be compared: the definition, in doubles.
ExpectedLayer normalised(ExpectedLayer layer, PolicyParams const& params) {
    if (params.score_norm == ScoreNorm::None) return layer;
    std::size_t const skip =
        params.score_norm == ScoreNorm::LayerNoSink ? params.sinks + params.kernel / 2 : 0;
    double sum = 0;
    for (Row& row : layer.pooled) {
        std::fill_n(row.begin(), std::min(skip, row.size()), 0.0);
        sum += std::accumulate(row.begin(), row.end(), 0.0);
    }
    for (Row& row : layer.pooled)
        for (double& score : row)
            score = sum > 0 ? score / sum : 0;
    return layer;
}

/// [layers * kv_heads] rows, from counts that are made here.
std::vector<std::uint32_t> expected_lengths(JobSpec const& spec,
                                            std::vector<ExpectedLayer> const& layers) {
    auto const policy = make_policy(spec.params, shape_of_prompt(spec));
    std::vector<ExpectedLayer> compared;
    std::vector<std::uint32_t> lengths;
    for (std::uint32_t l = 0; l < spec.geometry.layers; ++l) {
        compared.push_back(normalised(layers[l], spec.params));
        auto const total = policy->tally_total(l);
        if (!total) continue;
        auto const from = static_cast<std::ptrdiff_t>(policy->tally_from(l));
        policy->rebalance(l + 1, tally_of({compared.begin() + from, compared.end()}, *total));
    }
    for (std::uint32_t l = 0; l < spec.geometry.layers; ++l)
        for (std::uint32_t const budget : policy->budgets().layer(l))
            lengths.push_back(spec.params.window + budget);
    return lengths;
}

/// What holds for every run: sorted, no token twice, the window last, the best of the prefix before
/// it, and as many bytes as were said.
void check_kept(JobRun const& run, JobSpec const& spec, std::vector<ExpectedLayer> const& layers) {
    Geometry const& g = spec.geometry;
    std::uint32_t const prefix = spec.prompt_tokens - spec.params.window;
    for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
        auto const positions = run.positions(g, layer);
        for (std::uint32_t head = 0; head < g.kv_heads; ++head) {
            auto const& kept = positions[head];
            std::uint32_t const length = run.outcome.lengths[layer * g.kv_heads + head];
            REQUIRE(kept.size() == length);
            REQUIRE(length >= spec.params.window);
            REQUIRE(std::ranges::adjacent_find(kept, std::greater_equal<>()) == kept.end());
            REQUIRE(kept[length - spec.params.window] == static_cast<std::int32_t>(prefix));
            REQUIRE(kept.back() == static_cast<std::int32_t>(spec.prompt_tokens - 1));
            if (layers.empty()) continue;
            // By score and not by id: neighbours that differ in the last bit may change places.
            Row const& scores = layers[layer].pooled[head];
            double const worst_kept = scores[static_cast<std::size_t>(
                layers[layer].ranks[head][std::max(length - spec.params.window, 1U) - 1])];
            for (std::size_t i = 0; i + spec.params.window < length; ++i)
                REQUIRE(scores[static_cast<std::size_t>(kept[i])] >= worst_kept * (1 - 1e-5));
        }
    }
    auto const rows =
        std::accumulate(run.outcome.lengths.begin(), run.outcome.lengths.end(), std::uint64_t{0});
    CHECK(run.outcome.bytes_kept == rows * 2 * g.row_bytes());
    if (!spec.params.keep_mass)
        CHECK(run.outcome.bytes_kept == g.cache_bytes(spec.params.capacity));
    auto const& last = run.packed.back();
    auto const place = packed_layer(g, last.lengths, last.destination_offset);
    CHECK(place.end_offset <= run.destination.size());
}

}  // namespace

TEST_CASE("every granularity and norm gives the budgets that their definitions give") {
    auto const backend = make_cpu_backend(2);
    for (Granularity const granularity : kGranularities)
        for (ScoreNorm const norm : kNorms)
            for (bool const progressive : {true, false}) {
                CAPTURE(name_of(granularity));
                CAPTURE(name_of(norm));
                CAPTURE(progressive);
                auto spec = small_spec();
                spec.params.granularity = granularity;
                spec.params.score_norm = norm;
                spec.progressive = progressive;
                auto const prompt = fake_prompt(spec, 51);
                auto const layers = expected_layers(spec, prompt);

                auto const run = run_job(*backend, spec, prompt);

                CHECK(run.outcome.lengths == expected_lengths(spec, layers));
                check_kept(run, spec, layers);
            }
}

TEST_CASE("norms change what layers get, and granularities what heads get") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    auto const prompt = fake_prompt(spec, 52);
    std::vector<std::vector<std::uint32_t>> seen;
    for (Granularity const granularity : kGranularities)
        for (ScoreNorm const norm : kNorms) {
            spec.params.granularity = granularity;
            spec.params.score_norm = norm;
            seen.push_back(run_job(*backend, spec, prompt).outcome.lengths);
        }
    std::ranges::sort(seen);
    auto const distinct = std::unique(seen.begin(), seen.end()) - seen.begin();
    CHECK(distinct >= 6);  // Of 8: inside a layer its sum changes nothing.
}

TEST_CASE("a layer without scores to compare gets what is left, not a share by accident") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.params.score_norm = ScoreNorm::Layer;
    auto const prompt = fake_prompt(spec, 53);
    std::vector<float> scores(std::size_t{2} * spec.prompt_tokens);
    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        LayerSource source = prompt[layer].source();
        source.queries = {};
        // Layer 1 has nothing but zeros, layer 2 adds up to less than nothing.
        for (std::size_t i = 0; i < scores.size(); ++i)
            scores[i] = layer == 1 ? 0.F : (layer == 2 ? -1.F : 1.F) * static_cast<float>(i % 7);
        source.scores = dense_rows(std::as_writable_bytes(std::span(scores)).data(), Dtype::F32, 2,
                                   spec.prompt_tokens, 1);
        return source;
    });

    std::uint32_t const least = 4 + 1;  // The window, and ceil(r_min * base).
    CHECK(run.packed[1].lengths == std::vector<std::uint32_t>{least, least});
    CHECK(run.packed[2].lengths == std::vector<std::uint32_t>{least, least});
    CHECK(run.packed[0].lengths[0] > 10);
    CHECK(run.outcome.bytes_kept == spec.geometry.cache_bytes(spec.params.capacity));
}

TEST_CASE("heads that share their layer's budget are packed as soon as the layer comes") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.params.granularity = Granularity::Head;
    auto const run = run_job(*backend, spec, fake_prompt(spec, 54));

    CHECK(needs_of(spec).staging_bytes == 0);
    REQUIRE(run.events.size() == spec.geometry.layers);
    bool ragged = false;
    for (LayerProgress const& event : run.events) {
        CHECK(event.stage == LayerStage::Committed);
        CHECK(event.lengths[0] + event.lengths[1] == 2 * spec.params.capacity);
        ragged = ragged || event.lengths[0] != event.lengths[1];
    }
    CHECK(ragged);
}

TEST_CASE("heads of all layers are staged and trimmed each by its own") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.params.granularity = Granularity::LayerHead;
    auto const run = run_job(*backend, spec, fake_prompt(spec, 55));

    std::vector<std::vector<std::uint32_t>> lengths(spec.geometry.layers, {34, 34});
    bool ragged = false;
    for (LayerProgress const& event : run.events) {
        if (event.stage == LayerStage::Staged)
            CHECK(event.lengths == std::vector<std::uint32_t>{34, 34});
        for (std::size_t head = 0; head < 2; ++head)
            CHECK(event.lengths[head] <= lengths[event.layer][head]);
        ragged = ragged || event.lengths[0] != event.lengths[1];
        lengths[event.layer] = event.lengths;
    }
    CHECK(ragged);
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        CHECK(run.packed[layer].lengths == lengths[layer]);
}

TEST_CASE("a profile's budgets are packed at once, ragged, and nothing is staged") {
    auto const backend = make_cpu_backend(2);
    auto spec = small_spec();
    auto profile = std::make_shared<Profile>(Profile{
        .name = "tiny", .layers = 5, .heads = 2, .weights = {1, 2, 3, 4, 0, 9, 1, 1, 5, 2}});
    spec.params.profile = profile;
    auto const prompt = fake_prompt(spec, 56);

    auto const run = run_job(*backend, spec, prompt);

    CHECK(needs_of(spec).staging_bytes == 0);
    REQUIRE(run.events.size() == 5);
    // 100 tokens by 28ths: 3.57 7.14 10.71 14.29 0 32.14 3.57 3.57 17.86 7.14, and the window of 4.
    CHECK(run.outcome.lengths == std::vector<std::uint32_t>{8, 11, 15, 18, 4, 36, 8, 7, 22, 11});
    check_kept(run, spec, expected_layers(spec, prompt));
}

TEST_CASE(
    "keep_mass keeps the share that was asked for in every layer, and no more than it takes") {
    auto const backend = make_cpu_backend(2);
    for (char const* const name : {"h2o", "snapkv", "pyramidkv", "dynamickv"})
        for (Granularity const granularity : kGranularities)
            for (double const target : {0.05, 0.5, 0.9, 0.99, 1.0}) {
                CAPTURE(name);
                CAPTURE(name_of(granularity));
                CAPTURE(target);
                auto spec = small_spec(name);
                spec.params.granularity = granularity;
                spec.params.keep_mass = target;
                auto const prompt = fake_prompt(spec, 57);
                auto const layers = expected_layers(spec, prompt);

                auto const run = run_job(*backend, spec, prompt);

                CHECK(needs_of(spec).staging_bytes == 0);
                check_kept(run, spec, layers);
                REQUIRE(run.outcome.mass_kept.size() == 5);
                bool const alike =
                    granularity == Granularity::Layer || std::string(name) != "dynamickv";
                for (std::uint32_t l = 0; l < 5; ++l) {
                    CHECK(run.outcome.mass_kept[l] >= target);
                    CHECK(run.events[l].stage == LayerStage::Committed);
                    auto const& lengths = run.packed[l].lengths;
                    if (alike) CHECK(lengths[0] == lengths[1]);
                    // One token less, in the double's own arithmetic, would be too few.
                    double sum = 0;
                    for (std::uint32_t head = 0; head < 2; ++head) {
                        Row const& mass = layers[l].mass[head];
                        double share = 1 - std::accumulate(mass.begin(), mass.end(), 0.0);
                        for (std::uint32_t i = 0; i + 1 + spec.params.window < lengths[head]; ++i)
                            share += mass[static_cast<std::size_t>(layers[l].ranks[head][i])];
                        if (!alike && lengths[head] > spec.params.window)
                            CHECK(share < target + 1e-5);
                        sum += share;
                    }
                    if (alike && lengths[0] > spec.params.window) CHECK(sum / 2 < target + 1e-5);
                }
            }
}

TEST_CASE("keep_mass is refused where the engine's scores do not tell the attention") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec("snapkv");
    spec.params.keep_mass = 0.9;
    auto const prompt = fake_prompt(spec, 58);
    std::vector<float> scores(std::size_t{2} * spec.prompt_tokens, 1);  // Adds up to 90.
    JobNeeds const needs = needs_of(spec);
    std::vector<std::byte> destination(needs.destination_bytes);
    auto const job = Job::open(*backend, spec, {}, destination).value();
    REQUIRE(job->layer_ready(0, prompt[0].source()));

    LayerSource source = prompt[1].source();
    source.queries = {};
    source.scores = dense_rows(std::as_writable_bytes(std::span(scores)).data(), Dtype::F32, 2,
                               spec.prompt_tokens, 1);
    auto const refused = job->layer_ready(1, source);

    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::Unsupported);
    CHECK(refused.error().message ==
          "keep_mass needs the window's attention on every token, which the engine's scores of "
          "layer 1 do not tell: send queries");
    CHECK(job->layers_done() == 1);
    CHECK(job->layer_ready(1, prompt[1].source()));
}

TEST_CASE("whatever is asked for, a job keeps what it said: random shapes") {
    std::uint32_t const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const below = [&](std::uint32_t limit) {
        return static_cast<std::uint32_t>(random() % limit);
    };
    auto const backend = make_cpu_backend(2);
    for (int round = 0; round < 60; ++round) {
        CAPTURE(round);
        JobSpec spec;
        std::uint32_t const group = std::array{1U, 3U, 4U, 7U, 8U}[below(5)];
        spec.geometry = {.layers = 1 + below(9), .kv_heads = 1 + below(4), .head_dim = 4};
        spec.geometry.q_heads = spec.geometry.kv_heads * group;
        spec.geometry.dtype = std::array{Dtype::F32, Dtype::F16, Dtype::Bf16}[below(3)];
        spec.progressive = below(3) != 0;
        PolicyRequest wish{
            .name =
                std::string(policies()[below(static_cast<std::uint32_t>(policies().size()))].name)};
        // They rank by what is not here: reuse_test.cc has it.
        if (wish.name == "reuse" || wish.name == "scores") continue;
        wish.window = 1 + below(9);
        wish.kernel = 1 + 2 * below(4);
        wish.granularity = kGranularities[below(3)];
        wish.score_norm = kNorms[below(3)];
        wish.r_min = std::array{0.0, 0.1, 1.0}[below(3)];
        wish.r_max = std::array{1.0, 2.0, 10.0}[below(3)];
        wish.update_interval = 1 + below(4);
        std::uint32_t const size = below(4);
        if (size == 0) wish.capacity = *wish.window + below(30);
        if (size == 1) wish.ratio = (1 + below(99)) / 100.0;
        spec.prompt_tokens = 1 + below(120);
        if (size == 2) wish.bytes = spec.geometry.cache_bytes(*wish.window + below(40));
        if (size == 3) wish.keep_mass = (1 + below(100)) / 100.0;
        if (below(3) == 0) {
            auto profile = std::make_shared<Profile>(Profile{
                .name = "random", .layers = spec.geometry.layers, .heads = 1, .weights = {}});
            if (below(2)) profile->heads = spec.geometry.kv_heads;
            for (std::uint32_t i = 0; i < profile->layers * profile->heads; ++i)
                profile->weights.push_back(below(4) * 1.5);
            profile->weights[0] = 1;
            profile->floor = below(3) * 0.25;
            wish.profile = profile;
        }
        auto const resolved = resolve(wish);
        if (!resolved) {  // keep_mass of a policy that does not rank by attention.
            CHECK(wish.keep_mass);
            continue;
        }
        auto const params = sized(resolved.value(), spec.geometry, spec.prompt_tokens);
        REQUIRE(params);
        spec.params = params.value();
        CAPTURE(in_words(spec.params));
        CAPTURE(spec.prompt_tokens);
        if (!needs_of(spec).compress) continue;
        auto const prompt = fake_prompt(spec, below(1000));

        auto const run = run_job(*backend, spec, prompt);

        check_kept(run, spec, {});
        if (spec.params.keep_mass)
            for (float const mass : run.outcome.mass_kept)
                CHECK(mass >= *spec.params.keep_mass);
        spec.progressive = !spec.progressive;
        auto const other = run_job(*backend, spec, prompt);
        CHECK(other.outcome.lengths == run.outcome.lengths);
        CHECK(other.destination == run.destination);
        CHECK(other.outcome.mass_kept == run.outcome.mass_kept);
    }
}
