// A grid of policies over one saved prompt.
#include "cli/saved/offline/sweep.h"

#include <cmath>
#include <numeric>
#include <random>

#include <doctest/doctest.h>

#include "cli/saved/offline/attention_error.h"
#include "cli/saved/offline/side.h"
#include "sidecar/pipeline/job.h"
#include "tests/support/results.h"
#include "tests/support/rows.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using offline::SweepRow;

namespace {

constexpr Geometry kSwept{.layers = 5, .q_heads = 6, .kv_heads = 2, .head_dim = 8};
constexpr std::uint32_t kSweptTokens = 90;

struct SweepFixture {
    test::TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    std::vector<float> sinks;  ///< [q_heads], of every layer; or none.

    std::unique_ptr<SavedCache> file(std::uint32_t query_rows) {
        auto opened = open_cache(
            test::write_random_cache(folder / "cache", 11U, kSwept, kSweptTokens, query_rows,
                                     std::function<float(std::uint32_t)>(), sinks));
        REQUIRE(opened);
        return std::move(opened).value();
    }

    std::vector<SweepRow> sweep(SavedCache const& cache,
                                std::vector<PolicyRequest> const& points,
                                bool with_error = true) {
        auto rows = offline::sweep(*backend, cache, points, with_error);
        REQUIRE(rows);
        REQUIRE(rows.value().size() == points.size());
        return std::move(rows).value();
    }

    /// What the live job says of the same prompt.
    JobOutcome live(SavedCache const& cache, PolicyParams const& params) {
        JobSpec const spec{.geometry = kSwept,
                           .prompt_tokens = kSweptTokens,
                           .params = params,
                           .progressive = true};
        JobNeeds const needs = needs_of(spec);
        std::vector<std::byte> staging(needs.staging_bytes);
        std::vector<std::byte> destination(needs.destination_bytes);
        auto const job = Job::open(*backend, spec, staging, destination);
        REQUIRE(job);
        for (std::uint32_t layer = 0; layer < kSwept.layers; ++layer) {
            auto const saved = cache.layer(layer);
            REQUIRE(saved);
            std::uint32_t const wanted = std::max(needs.window, params.window);
            LayerSource const source{.keys = saved.value().keys,
                                     .values = saved.value().values,
                                     .queries = offline::last_queries(saved.value(), wanted),
                                     .scores = {},
                                     .sink_logits = saved.value().sink_logits};
            REQUIRE(job.value()->layer_ready(layer, source));
        }
        for (std::uint32_t layer = 0; layer < kSwept.layers; ++layer)
            REQUIRE(job.value()->pack(layer));
        return job.value()->outcome().value();
    }
};

/// Every policy, small and large, with windows, kernels and norms that differ.
std::vector<PolicyRequest> grid() {
    std::vector<PolicyRequest> points;
    for (char const* name :
         {"auto", "streamingllm", "h2o", "snapkv", "pyramidkv", "dynamickv", "knorm", "keydiff"})
        for (std::uint32_t const capacity : {8U, 24U, 60U}) {
            points.push_back({.name = name, .capacity = capacity, .window = 4});
            points.push_back({.name = name,
                              .capacity = capacity,
                              .window = 7,
                              .kernel = 3,
                              .pool = Pool::Avg,
                              .reduce = GroupReduce::Max,
                              .granularity = Granularity::LayerHead,
                              .score_norm = ScoreNorm::LayerNoSink,
                              .query_norm = true});
        }
    for (char const* name : {"snapkv", "h2o", "dynamickv"})
        points.push_back({.name = name, .window = 4, .keep_mass = 0.8});
    return points;
}

}  // namespace

TEST_CASE_FIXTURE(SweepFixture,
                  "every point of a sweep is what the live job makes of that policy") {
    auto const cache = file(kSweptTokens);
    auto const points = grid();
    auto const rows = sweep(*cache, points, false);

    for (std::size_t i = 0; i < points.size(); ++i) {
        CAPTURE(in_words(rows[i].params));
        REQUIRE(rows[i].error == "");
        JobOutcome const outcome = live(*cache, rows[i].params);
        CHECK(rows[i].lengths == outcome.lengths);
        CHECK(rows[i].mass_kept == outcome.mass_kept);
        CHECK(rows[i].bytes_kept == outcome.bytes_kept);
        CHECK(rows[i].bytes_full == outcome.bytes_full);
        CHECK(rows[i].error_l2.empty());
    }
}

TEST_CASE_FIXTURE(SweepFixture, "a sweep of a file with sinks is what the live job makes of it") {
    auto const plain = sweep(*file(kSweptTokens), {{.name = "h2o", .capacity = 24, .window = 4}});
    sinks = {-5, 0, 30, 3, 2, 5};
    auto const cache = file(kSweptTokens);
    auto const rows = sweep(*cache, {{.name = "h2o", .capacity = 24, .window = 4},
                                     {.name = "snapkv", .window = 4, .keep_mass = 0.9}});
    for (auto const& row : rows) {
        JobOutcome const outcome = live(*cache, row.params);
        CHECK(row.lengths == outcome.lengths);
        CHECK(row.mass_kept == outcome.mass_kept);
    }
    CHECK(rows[0].mass_kept != plain[0].mass_kept);
    CHECK(rows[0].error_l2 != plain[0].error_l2);
}

TEST_CASE_FIXTURE(SweepFixture, "a point comes out alike alone and beside others") {
    auto const cache = file(kSweptTokens);
    auto const points = grid();
    auto const together = sweep(*cache, points);

    for (std::size_t i = 0; i < points.size(); i += 5) {
        auto const alone = sweep(*cache, {points[i]});
        CHECK(alone[0].lengths == together[i].lengths);
        CHECK(alone[0].mass_kept == together[i].mass_kept);
        CHECK(alone[0].error_l2 == together[i].error_l2);
    }
}

TEST_CASE_FIXTURE(SweepFixture, "the sum of a capacity is kept to the token") {
    for (SweepRow const& row : sweep(*file(kSweptTokens), grid(), false)) {
        if (row.params.keep_mass) continue;
        CAPTURE(in_words(row.params));
        CHECK(std::accumulate(row.lengths.begin(), row.lengths.end(), 0U) ==
              kSwept.layers * kSwept.kv_heads * row.params.capacity);
    }
}

TEST_CASE_FIXTURE(SweepFixture,
                  "more tokens never make the error larger than all of it, all make none") {
    auto const rows = sweep(*file(8), {{.name = "snapkv", .capacity = 8, .window = 8},
                                       {.name = "snapkv", .capacity = 80, .window = 8},
                                       {.name = "snapkv", .capacity = 90, .window = 8}});

    for (std::size_t layer = 0; layer < kSwept.layers; ++layer) {
        CHECK(rows[0].error_l2[layer] > rows[1].error_l2[layer]);
        CHECK(rows[1].error_l2[layer] > 0);
        CHECK(rows[2].error_l2[layer] == 0);
        CHECK(rows[2].mass_kept[layer] == 1);
    }
    CHECK(rows[2].bytes_kept == rows[2].bytes_full);
}

TEST_CASE_FIXTURE(SweepFixture, "what one point lacks stands in its row, and the others come out") {
    auto const rows = sweep(*file(4), {{.name = "h2o", .capacity = 20, .window = 4},
                                       {.name = "snapkv", .capacity = 20, .window = 8},
                                       {.name = "knorm", .capacity = 20, .window = 8},
                                       {.name = "snapkv", .capacity = 3, .window = 4}});

    CHECK(rows[0].error ==
          "h2o needs the queries of the last 90 tokens, and the file has 4: `dkv capture MODEL "
          "FILE` works them out; reuse, knorm, keydiff and streamingllm need none");
    CHECK(rows[1].error ==
          "snapkv needs the queries of the last 8 tokens, and the file has 4: a window of 4 would "
          "do; reuse, knorm, keydiff and streamingllm need none");
    CHECK(rows[2].error == "");
    CHECK(rows[2].lengths == std::vector<std::uint32_t>(10, 20));
    CHECK(rows[2].mass_kept.empty());
    CHECK(rows[2].error_l2.size() == kSwept.layers);
    CHECK(rows[3].error == "capacity is 3, below the window of 4 tokens that are always kept");
}

TEST_CASE_FIXTURE(SweepFixture, "a file without queries has neither mass nor error") {
    auto const rows = sweep(*file(0), {{.name = "keydiff", .capacity = 20, .window = 4}});
    CHECK(rows[0].error == "");
    CHECK(rows[0].mass_kept.empty());
    CHECK(rows[0].error_l2.empty());
}

TEST_CASE_FIXTURE(SweepFixture, "a sweep stops when it is told to") {
    int layers = 0;
    offline::Progress const progress{.advance = [&](auto, auto, auto) { ++layers; },
                                     .stop = [&] { return layers == 2; }};
    std::vector<PolicyRequest> const points{{.name = "snapkv", .capacity = 20, .window = 4}};
    auto const stopped = offline::sweep(*backend, *file(4), points, true, progress);
    REQUIRE_FALSE(stopped);
    CHECK(stopped.error().code == ErrorCode::Cancelled);
    CHECK(stopped.error().message == "interrupted");
    CHECK(layers == 2);
}

TEST_CASE("the error of attention, by hand: one token that held half of it is gone") {
    // Two tokens with the same logit and values 1 and 3: 2 over both, 3 over the second alone.
    test::Rows queries(Dtype::F32, 1, 1, 1);
    test::Rows keys(Dtype::F32, 1, 2, 1);
    test::Rows values(Dtype::F32, 1, 2, 1);
    queries.set(0, 0, 0, 1);
    keys.fill([](auto...) { return 0.5F; });
    values.set(0, 0, 0, 1);
    values.set(0, 1, 0, 3);
    std::vector<offline::KeptTokens> const kept{{.rows = {1}, .lengths = {1}},
                                                {.rows = {0, 1}, .lengths = {2}},
                                                {.rows = {}, .lengths = {0}}};

    auto const errors = offline::attention_error(
        {.queries = queries.view, .keys = keys.view, .values = values.view, .kept = kept});
    REQUIRE(errors);
    CHECK(errors.value()[0] == doctest::Approx(0.5));
    CHECK(errors.value()[1] == 0);
    CHECK(errors.value()[2] == 1);  // Nothing is kept: nothing comes out.
}

TEST_CASE("the error of attention is that of the long way round, for every dtype and layout") {
    constexpr std::uint32_t kHeads = 2, kGroup = 3, kAll = 150, kWindow = 5, kDim = 20;
    std::mt19937 random(5);
    for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16})
        for (auto const layout : {test::Layout::HeadMajor, test::Layout::Odd})
            for (float const softcap : {0.0F, 2.0F}) {
                std::vector<float> const sinks =
                    softcap == 0 ? std::vector<float>{-5, 0, 1, 3, 6, 30} : std::vector<float>{};
                test::Rows q(dtype, kHeads * kGroup, kWindow, kDim, layout);
                test::Rows k(dtype, kHeads, kAll, kDim, layout);
                test::Rows v(dtype, kHeads, kAll, kDim, layout);
                for (auto* rows : {&q, &k, &v})
                    rows->fill_normal(random);
                offline::KeptTokens kept{.rows = {}, .lengths = {}};
                for (std::uint32_t head = 0; head < kHeads; ++head) {
                    std::size_t const before = kept.rows.size();
                    for (std::uint32_t t = head; t < kAll;
                         t += 2 + static_cast<std::uint32_t>(random() % 3))
                        kept.rows.push_back(static_cast<std::int32_t>(t));
                    kept.lengths.push_back(static_cast<std::uint32_t>(kept.rows.size() - before));
                }

                double moved = 0;
                double whole = 0;
                std::size_t first = 0;
                for (std::uint32_t head = 0; head < kHeads; ++head) {
                    auto const in = std::span(kept.rows).subspan(first, kept.lengths[head]);
                    first += kept.lengths[head];
                    for (std::uint32_t row = 0; row < kGroup * kWindow; ++row) {
                        std::uint32_t const query = row % kWindow;
                        std::vector<double> all(kDim), some(kDim);
                        double const sink =
                            sinks.empty() ? 0
                                          : std::exp(double{sinks[head * kGroup + row / kWindow]});
                        double all_sum = sink, some_sum = sink;
                        for (std::uint32_t t = 0; t < kAll - kWindow + query + 1; ++t) {
                            double dot = 0;
                            for (std::uint32_t d = 0; d < kDim; ++d)
                                dot += double{q.get(head * kGroup + row / kWindow, query, d)} *
                                       double{k.get(head, t, d)};
                            dot *= 0.3;
                            if (softcap != 0) dot = softcap * std::tanh(dot / softcap);
                            double const weight = std::exp(dot);
                            bool const is_kept =
                                std::ranges::count(in, static_cast<std::int32_t>(t)) > 0;
                            all_sum += weight;
                            some_sum += is_kept ? weight : 0;
                            for (std::uint32_t d = 0; d < kDim; ++d) {
                                all[d] += weight * double{v.get(head, t, d)};
                                some[d] += is_kept ? weight * double{v.get(head, t, d)} : 0;
                            }
                        }
                        for (std::uint32_t d = 0; d < kDim; ++d) {
                            whole += std::pow(all[d] / all_sum, 2);
                            moved += std::pow(some[d] / some_sum - all[d] / all_sum, 2);
                        }
                    }
                }
                auto const errors = offline::attention_error({.queries = q.view,
                                                              .keys = k.view,
                                                              .values = v.view,
                                                              .kept = std::span(&kept, 1),
                                                              .scale = 0.3F,
                                                              .softcap = softcap,
                                                              .sink_logits = sinks},
                                                             2);
                REQUIRE(errors);
                CHECK(errors.value()[0] == doctest::Approx(std::sqrt(moved / whole)).epsilon(1e-4));
            }
}

TEST_CASE("the error of attention, by hand: a sink keeps its share when a token goes") {
    // Two tokens of logit 0 and a sink of log 2: o = (1 + 3) / 4; without the second 1 / 3.
    test::Rows queries(Dtype::F32, 1, 1, 1);
    test::Rows keys(Dtype::F32, 1, 2, 1);
    test::Rows values(Dtype::F32, 1, 2, 1);
    values.fill([](auto, auto token, auto) { return token == 0 ? 1.F : 3.F; });
    float const sink = std::log(2.F);
    std::vector<offline::KeptTokens> const kept{{.rows = {0}, .lengths = {1}},
                                                {.rows = {}, .lengths = {0}}};
    auto const errors = offline::attention_error({.queries = queries.view,
                                                  .keys = keys.view,
                                                  .values = values.view,
                                                  .kept = kept,
                                                  .sink_logits = std::span(&sink, 1)});
    REQUIRE(errors);
    CHECK(errors.value()[0] == doctest::Approx(2.0 / 3));
    CHECK(errors.value()[1] == 1);
}

TEST_CASE("shapes that disagree are refused before anything is read") {
    test::Rows const q(Dtype::F32, 2, 3, 4);
    test::Rows const k(Dtype::F32, 2, 5, 4);
    test::Rows const v(Dtype::F32, 2, 6, 4);
    test::Rows const few(Dtype::F32, 2, 2, 4);
    auto const refusal = [](offline::AttentionErrorArgs const& args) {
        auto const errors = offline::attention_error(args);
        return errors ? std::string() : errors.error().message;
    };
    offline::KeptTokens const kept{.rows = {}, .lengths = {0}};
    CHECK(refusal({.queries = q.view, .keys = k.view, .values = v.view, .kept = {}}) ==
          "values is [2, 6, 4], not [2, 5, 4]");
    CHECK(refusal({.queries = q.view, .keys = few.view, .values = few.view, .kept = {}}) ==
          "there are queries of 3 tokens, and 2 tokens");
    CHECK(refusal(
              {.queries = q.view, .keys = k.view, .values = k.view, .kept = std::span(&kept, 1)}) ==
          "lengths has 1 elements, not [2]");
}
