// Tokens that are kept for questions which come later: by a profile's surrogate, alone or beside
// the window's attention, and by scores that come with the cache.
#include <algorithm>
#include <numeric>
#include <set>

#include <doctest/doctest.h>

#include "sidecar/pipeline/layer_source.h"
#include "tests/sidecar/pipeline/expected.h"
#include "tests/sidecar/pipeline/job_run.h"

using namespace dkv;

namespace {

using Positions = std::vector<std::int32_t>;

/// Every head alike, and a surrogate of random weights, whose scores are about those of attention.
std::shared_ptr<Profile> profile_for(Geometry const& geometry, std::uint32_t seed) {
    std::mt19937 random(seed);
    auto surrogate = std::make_shared<Surrogate>();
    surrogate->kv_heads = geometry.kv_heads;
    surrogate->head_dim = geometry.head_dim;
    surrogate->frequencies = {1.0F, 0.25F, 0.0625F};
    std::size_t const count = geometry.layers * geometry.kv_heads * surrogate->features();
    for (std::size_t i = 0; i < count; ++i)
        surrogate->weights.push_back((i + 1) % surrogate->features() == 0
                                         ? -3.0F
                                         : (static_cast<float>(random() % 255) - 127) / 1024);
    auto profile = std::make_shared<Profile>();
    profile->name = "tried";
    profile->layers = geometry.layers;
    profile->heads = 1;
    profile->weights.assign(geometry.layers, 1.0);
    profile->surrogate = surrogate;
    return profile;
}

JobSpec spec_with(char const* policy, std::shared_ptr<Profile const> const& profile) {
    JobSpec spec = small_spec();
    spec.params = resolve({.name = policy,
                           .capacity = 14,
                           .window = 4,
                           .kernel = 3,
                           .r_max = 1000.0,
                           .r_min = 0.0,
                           .update_interval = 5U,
                           .profile = std::const_pointer_cast<Profile>(profile)})
                      .value();
    return spec;
}

Row surrogate_scores(Surrogate const& surrogate,
                     FakeLayer const& layer,
                     std::uint32_t index,
                     std::uint32_t head,
                     std::uint32_t prefix) {
    std::size_t const first = (index * surrogate.kv_heads + head) * surrogate.features();
    std::size_t const pairs = surrogate.frequencies.size();
    Row scores;
    for (std::uint32_t token = 0; token < prefix; ++token) {
        Row known;
        Row logs;
        for (auto const* const rows : {&layer.keys, &layer.values})
            for (std::uint32_t of = 0; of < surrogate.kv_heads; ++of) {
                Row row;
                for (std::uint32_t dim = 0; dim < surrogate.head_dim; ++dim)
                    row.push_back(rows->at(of, token, dim));
                logs.push_back(
                    std::log(std::inner_product(row.begin(), row.end(), row.begin(), 0.0)) / 2);
                for (std::size_t i = 0; rows == &layer.keys && i < pairs; ++i) {
                    double const angle = token * double{surrogate.frequencies[i]};
                    double const a = row[i];
                    double const b = row[pairs + i];
                    row[i] = a * std::cos(angle) + b * std::sin(angle);
                    row[pairs + i] = b * std::cos(angle) - a * std::sin(angle);
                }
                known.insert(known.end(), row.begin(), row.end());
            }
        known.insert(known.end(), logs.begin(), logs.end());
        known.push_back(1);
        scores.push_back(std::inner_product(
            known.begin(), known.end(),
            surrogate.weights.begin() + static_cast<std::ptrdiff_t>(first), 0.0));
    }
    return scores;
}

Positions ranked(Row const& scores) {
    Positions ranks(scores.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    std::ranges::stable_sort(ranks, std::greater<>(),
                             [&](std::int32_t id) { return scores[static_cast<std::size_t>(id)]; });
    return ranks;
}

/// The best `count` of `ranks`, in order of position, and the window.
Positions kept_of(Positions const& ranks, std::size_t count, JobSpec const& spec) {
    Positions kept(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(count));
    for (std::uint32_t t = spec.prompt_tokens - spec.params.window; t < spec.prompt_tokens; ++t)
        kept.push_back(static_cast<std::int32_t>(t));
    std::ranges::sort(kept);
    return kept;
}

/// The most that one query of the window attends to each prefix token, smoothed.
Row peaks_of(JobSpec const& spec, FakeLayer const& layer, std::uint32_t head) {
    Row peaks(spec.prompt_tokens - spec.params.window, 0.0);
    std::uint32_t const group = spec.geometry.group();
    for (std::uint32_t query_head = head * group; query_head < (head + 1) * group; ++query_head) {
        Row later(spec.prompt_tokens, 0.0);
        for (std::uint32_t count = 1; count <= spec.params.window; ++count) {
            Row const all = attention_of(spec, layer, query_head, count);
            for (std::size_t t = 0; t < peaks.size(); ++t)
                peaks[t] = std::max(peaks[t], all[t] - later[t]);
            later = all;
        }
    }
    return pooled_of(peaks, spec.params);
}

/// [layers * kv_heads] how many of the `total` largest scores of all heads each head has.
std::vector<std::size_t> counts_of(std::vector<Row> const& scores, std::size_t total) {
    Row all;
    for (Row const& row : scores)
        all.insert(all.end(), row.begin(), row.end());
    std::ranges::sort(all, std::greater<>());
    std::vector<std::size_t> counts;
    for (Row const& row : scores)
        counts.push_back(static_cast<std::size_t>(
            std::ranges::count_if(row, [&](double one) { return one >= all[total - 1]; })));
    return counts;
}

LayerSource without_queries(FakeLayer const& layer) {
    LayerSource source = layer.source();
    source.queries = {};
    return source;
}

}  // namespace

TEST_CASE("reuse keeps what the surrogate foresees most, of all heads, and asks for no queries") {
    auto const backend = make_cpu_backend(2);
    JobSpec const spec = spec_with("reuse", profile_for(small_spec().geometry, 5));
    auto const prompt = fake_prompt(spec, 7);
    CHECK(needs_of(spec).window == 0);

    auto const run = run_job(*backend, spec,
                             [&](std::uint32_t layer) { return without_queries(prompt[layer]); });

    std::vector<Row> scores;
    for (std::uint32_t layer = 0; layer < 5; ++layer)
        for (std::uint32_t head = 0; head < 2; ++head)
            scores.push_back(
                surrogate_scores(*spec.params.profile->surrogate, prompt[layer], layer, head, 86));
    auto const counts = counts_of(scores, std::size_t{5} * 2 * 10);
    CHECK(std::set(counts.begin(), counts.end()).size() > 1);
    for (std::uint32_t i = 0; i < 10; ++i) {
        CAPTURE(i);
        CHECK(run.positions(spec.geometry, i / 2)[i % 2] ==
              kept_of(ranked(scores[i]), counts[i], spec));
    }
    CHECK(run.outcome.mass_kept.empty());
}

TEST_CASE("auto ranks by what is seen or foreseen, the larger; the profile has half the budgets") {
    auto const backend = make_cpu_backend(2);
    JobSpec const spec = spec_with("auto", profile_for(small_spec().geometry, 5));
    auto const prompt = fake_prompt(spec, 7);
    CHECK(needs_of(spec).window == 4);

    auto const run = run_job(*backend, spec, prompt);

    std::vector<Row> scores;
    for (std::uint32_t layer = 0; layer < 5; ++layer)
        for (std::uint32_t head = 0; head < 2; ++head) {
            scores.push_back(
                surrogate_scores(*spec.params.profile->surrogate, prompt[layer], layer, head, 86));
            Row const peaks = peaks_of(spec, prompt[layer], head);
            for (std::size_t t = 0; t < peaks.size(); ++t)
                scores.back()[t] = std::max(scores.back()[t], std::log(peaks[t]));
        }
    auto const counts = counts_of(scores, std::size_t{5} * 2 * 10);
    std::size_t total = 0;
    for (std::uint32_t i = 0; i < 10; ++i) {
        CAPTURE(i);
        Positions const positions = run.positions(spec.geometry, i / 2)[i % 2];
        std::size_t const budget = positions.size() - 4;
        CHECK(2 * budget + 1 >= counts[i] + 10);
        CHECK(2 * budget <= counts[i] + 10 + 1);
        CHECK(positions == kept_of(ranked(scores[i]), budget, spec));
        total += budget;
    }
    CHECK(total == 5 * 2 * 10);
    CHECK(run.outcome.mass_kept.size() == spec.geometry.layers);
}

TEST_CASE("what the cache is for decides who chooses") {
    auto const backend = make_cpu_backend(2);
    auto const profile = profile_for(small_spec().geometry, 5);
    JobSpec spec = spec_with("reuse", profile);
    auto const prompt = fake_prompt(spec, 7);
    auto const reuse = run_job(*backend, spec, prompt).destination;
    auto const no_queries = [&](std::uint32_t layer) { return without_queries(prompt[layer]); };

    spec = spec_with("auto", profile);
    auto const both = run_job(*backend, spec, prompt).destination;
    CHECK(both != reuse);
    CHECK(run_job(*backend, spec, no_queries).destination != both);
    spec.params.purpose = Purpose::Reuse;
    CHECK(run_job(*backend, spec, prompt).destination == reuse);
    CHECK(run_job(*backend, spec, no_queries).destination == reuse);
    spec.params.purpose = Purpose::ThisQuestion;
    auto const question = run_job(*backend, spec, prompt).destination;
    CHECK(question != both);

    auto const plain = std::make_shared<Profile>(*profile);
    plain->surrogate = nullptr;
    spec = spec_with("auto", plain);
    CHECK(run_job(*backend, spec, prompt).destination == question);
}

TEST_CASE("scores that come with the cache have one threshold for all heads of all layers") {
    auto const backend = make_cpu_backend(2);
    JobSpec spec = small_spec();
    spec.params =
        resolve({.name = "scores", .capacity = 14, .window = 4, .r_max = 1000.0, .r_min = 0.0})
            .value();
    auto const prompt = fake_prompt(spec, 7);
    std::mt19937 random(3);
    std::vector<std::vector<float>> scores(5);
    std::vector<float> all;
    for (auto& layer : scores)
        for (std::uint32_t i = 0; i < 2 * 90; ++i) {
            layer.push_back(static_cast<float>(random() % 100000));
            if (i % 90 < 86) all.push_back(layer.back());
        }
    std::ranges::sort(all, std::greater<>());
    float const threshold = all[5 * 2 * 10 - 1];

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        LayerSource source = without_queries(prompt[layer]);
        source.scores =
            dense_rows(reinterpret_cast<std::byte*>(scores[layer].data()), Dtype::F32, 2, 90, 1);
        return source;
    });

    std::set<std::uint32_t> lengths;
    for (std::uint32_t layer = 0; layer < 5; ++layer)
        for (std::uint32_t head = 0; head < 2; ++head) {
            Positions want;
            for (std::int32_t t = 0; t < 90; ++t)
                if (t >= 86 || scores[layer][head * 90 + static_cast<std::size_t>(t)] >= threshold)
                    want.push_back(t);
            CHECK(run.positions(spec.geometry, layer)[head] == want);
            lengths.insert(static_cast<std::uint32_t>(want.size()));
        }
    CHECK(lengths.size() > 1);
}

TEST_CASE("what is missing is named: scores, a surrogate, one for this model") {
    auto const backend = make_cpu_backend(2);
    JobSpec const spec = small_spec("scores");
    auto const prompt = fake_prompt(spec, 7);
    JobNeeds const needs = needs_of(spec);
    std::vector<std::byte> staging(needs.staging_bytes);
    std::vector<std::byte> destination(needs.destination_bytes);
    CHECK(check(without_queries(prompt[0]), spec).error().message ==
          "there are no scores, and scores ranks tokens by them");

    Geometry const geometry = spec.geometry;
    auto profile = profile_for(geometry, 1);
    auto const refusal = [&](Geometry const& of) {
        auto const params = resolve({.name = "reuse", .profile = profile});
        return sized(params.value(), of, 900).error().message;
    };
    Geometry narrow = geometry;
    narrow.head_dim = 4;
    CHECK(refusal(narrow) ==
          "profile \"tried\" has a surrogate for 2 KV heads of 8 dimensions, not for 2 of 4: "
          "calibrate this model");
    profile->surrogate = nullptr;
    CHECK(refusal(geometry) ==
          "reuse ranks tokens by a profile's surrogate, and profile \"tried\" has none: `dkv "
          "calibrate MODEL --surrogate` makes one");
    profile = nullptr;
    CHECK(refusal(geometry) ==
          "reuse ranks tokens by a profile's surrogate, and there is no profile: `dkv calibrate "
          "MODEL --surrogate` makes one");
}
