// Whole prompts through make_cpu_backend(), against a computation of the test's own.
#include "sidecar/pipeline/job.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include <doctest/doctest.h>

#include "tests/sidecar/pipeline/expected.h"
#include "tests/sidecar/pipeline/job_run.h"

using namespace dkv;

namespace {

constexpr std::array kCompressing{"streamingllm", "h2o",   "snapkv", "pyramidkv",
                                  "dynamickv",    "knorm", "keydiff"};

/// Every packed row is the source's row at its reported position.
void check_rows(JobRun const& run, JobSpec const& spec, std::vector<FakeLayer> const& prompt) {
    Geometry const& g = spec.geometry;
    std::uint64_t end = 0;
    bool equal = true;
    for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
        LayerProgress const& at = run.packed[layer];
        CHECK(at.stage == LayerStage::Committed);
        CHECK(at.layer == layer);
        CHECK(at.destination_offset >= end);
        auto const place = packed_layer(g, at.lengths, at.destination_offset);
        end = place.end_offset;
        auto const positions = run.positions(g, layer);
        for (std::uint32_t head = 0; head < g.kv_heads; ++head)
            for (std::uint32_t row = 0; row < at.lengths[head]; ++row) {
                auto const token = static_cast<std::uint32_t>(positions[head][row]);
                std::uint64_t const offset = (place.head_rows[head] + row) * g.row_bytes();
                auto const* const out = run.destination.data() + offset;
                equal =
                    equal &&
                    std::memcmp(out + place.keys_offset, prompt[layer].keys.view().row(head, token),
                                g.row_bytes()) == 0 &&
                    std::memcmp(out + place.values_offset,
                                prompt[layer].values.view().row(head, token), g.row_bytes()) == 0;
            }
    }
    CHECK(equal);
    CHECK(end <= run.destination.size());
}

void check_run(JobRun const& run, JobSpec const& spec, std::vector<FakeLayer> const& prompt) {
    Expected const expected = expected_of(spec, prompt);
    Geometry const& g = spec.geometry;
    REQUIRE(run.outcome.lengths.size() == g.layers * g.kv_heads);
    REQUIRE(run.outcome.mass_kept.size() == g.layers);
    for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
        CAPTURE(layer);
        auto const positions = run.positions(g, layer);
        for (std::uint32_t head = 0; head < g.kv_heads; ++head) {
            CAPTURE(head);
            CHECK(positions[head] == expected.kept(spec, layer, head));
            CHECK(run.outcome.lengths[layer * g.kv_heads + head] == positions[head].size());
        }
        CHECK(double{run.outcome.mass_kept[layer]} ==
              doctest::Approx(expected.mass_kept(spec, layer)).epsilon(1e-5));
    }
    check_rows(run, spec, prompt);

    std::uint64_t const rows =
        std::accumulate(run.outcome.lengths.begin(), run.outcome.lengths.end(), std::uint64_t{0});
    CHECK(rows == std::uint64_t{spec.params.capacity} * g.layers * g.kv_heads);
    CHECK(run.outcome.bytes_full == g.cache_bytes(spec.prompt_tokens));
    CHECK(run.outcome.bytes_kept == g.cache_bytes(spec.params.capacity));
}

void run_and_check(Backend& backend, JobSpec const& spec, std::uint32_t seed, Order order) {
    auto const prompt = fake_prompt(spec, seed, order);
    auto const before = fake_prompt(spec, seed, order);
    check_run(run_job(backend, spec, prompt), spec, prompt);
    for (std::size_t layer = 0; layer < prompt.size(); ++layer) {
        CHECK(prompt[layer].keys.bytes == before[layer].keys.bytes);
        CHECK(prompt[layer].values.bytes == before[layer].values.bytes);
    }
}

}  // namespace

TEST_CASE("rows are rounded up with the next best ones") {
    auto const backend = make_cpu_backend(2);
    JobSpec spec = small_spec("snapkv");
    spec.rounding = {.multiple = 8, .offset = 3};  // 14 rows become 19.
    auto const prompt = fake_prompt(spec, 11);

    auto const run = run_job(*backend, spec, prompt);

    spec.rounding = {};
    spec.params.capacity = 19;
    auto const expected = run_job(*backend, spec, prompt);
    CHECK(run.outcome.lengths == std::vector<std::uint32_t>(10, 19));
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        CHECK(run.positions(spec.geometry, layer) == expected.positions(spec.geometry, layer));
}

TEST_CASE("unequal budgets are rounded head by head, staged or not") {
    auto const backend = make_cpu_backend(2);
    for (bool const progressive : {true, false})
        for (std::uint32_t const multiple : {1U, 8U, 64U, 1000U}) {
            JobSpec spec = small_spec();
            spec.params.granularity = Granularity::LayerHead;
            spec.progressive = progressive;
            auto const prompt = fake_prompt(spec, 11);
            auto const plain = run_job(*backend, spec, prompt);
            spec.rounding = {.multiple = multiple, .offset = spec.prompt_tokens % multiple};
            CAPTURE(progressive);
            CAPTURE(multiple);

            auto const run = run_job(*backend, spec, prompt);

            for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
                auto const kept = run.positions(spec.geometry, layer);
                auto const less = plain.positions(spec.geometry, layer);
                for (std::size_t head = 0; head < kept.size(); ++head) {
                    auto const dropped = spec.prompt_tokens - kept[head].size();
                    CHECK(dropped % multiple == 0);
                    CHECK(kept[head].size() - less[head].size() < multiple);
                    CHECK(std::ranges::includes(kept[head], less[head]));
                }
            }
        }
}

TEST_CASE("a job keeps what its policy wants, for every policy and dtype, staged or not") {
    auto const backend = make_cpu_backend(2);
    for (char const* const policy : kCompressing)
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16})
            for (bool const progressive : {true, false})
                for (Order const order : {Order::HeadMajor, Order::TokenMajor}) {
                    CAPTURE(policy);
                    CAPTURE(name_of(dtype));
                    CAPTURE(progressive);
                    auto spec = small_spec(policy);
                    spec.geometry.dtype = dtype;
                    spec.progressive = progressive;
                    run_and_check(*backend, spec, 11, order);
                }
}

TEST_CASE("a job pools and reduces as it is told") {
    auto const backend = make_cpu_backend(2);
    for (Pool const pool : {Pool::Max, Pool::Avg})
        for (GroupReduce const reduce : {GroupReduce::Mean, GroupReduce::Max, GroupReduce::Sum})
            for (std::uint32_t const kernel : {1U, 5U, 63U}) {
                CAPTURE(name_of(pool));
                CAPTURE(name_of(reduce));
                CAPTURE(kernel);
                auto spec = small_spec();
                spec.params.pool = pool;
                spec.params.reduce = reduce;
                // An average over most of the prefix has neighbours too near for an exact
                // comparison.
                spec.params.kernel = pool == Pool::Avg ? std::min(kernel, 5U) : kernel;
                run_and_check(*backend, spec, 12, Order::HeadMajor);
            }
}

TEST_CASE("h2o does not pool, reduces as it is told, and divides by the queries that see a token") {
    auto const backend = make_cpu_backend(2);
    for (bool const query_norm : {false, true})
        for (GroupReduce const reduce : {GroupReduce::Mean, GroupReduce::Max, GroupReduce::Sum}) {
            CAPTURE(query_norm);
            CAPTURE(name_of(reduce));
            auto spec = small_spec("h2o");
            spec.params.query_norm = query_norm;
            spec.params.reduce = reduce;
            spec.params.kernel = 63;
            run_and_check(*backend, spec, 18, Order::TokenMajor);
        }
}

TEST_CASE("a layer's sinks take their share of its scores, and count as kept in its mass") {
    auto const backend = make_cpu_backend(2);
    for (char const* const policy : {"snapkv", "dynamickv", "h2o", "streamingllm"}) {
        CAPTURE(policy);
        auto const spec = small_spec(policy);
        auto prompt = fake_prompt(spec, 23);
        auto const without = run_job(*backend, spec, prompt);
        for (std::size_t layer = 0; layer < prompt.size(); ++layer)
            if (layer != 2) prompt[layer].sinks = {-5, 30, 4, static_cast<float>(layer)};
        auto const run = run_job(*backend, spec, prompt);
        check_run(run, spec, prompt);
        // The sink of 30 leaves one of the head's two query heads without a say.
        CHECK((run.destination != without.destination) == (policy != std::string("streamingllm")));
        CHECK(run.outcome.mass_kept[0] > without.outcome.mass_kept[0]);
    }
}

TEST_CASE("each policy asks for the queries that it ranks by") {
    CHECK(needs_of(small_spec("h2o")).window == 90);
    CHECK(needs_of(small_spec("snapkv")).window == 4);
    CHECK(needs_of(small_spec("streamingllm")).window == 4);
    CHECK(needs_of(small_spec("knorm")).window == 0);
    CHECK(needs_of(small_spec("keydiff")).window == 0);
}

TEST_CASE("a policy without queries knows no mass, and keeps the same with them") {
    auto const backend = make_cpu_backend(1);
    for (char const* const policy : {"knorm", "keydiff"}) {
        CAPTURE(policy);
        auto const spec = small_spec(policy);
        auto const prompt = fake_prompt(spec, 19);
        auto const with = run_job(*backend, spec, prompt);
        auto const without = run_job(*backend, spec, [&](std::uint32_t layer) {
            LayerSource source = prompt[layer].source();
            source.queries = {};
            return source;
        });
        CHECK(without.destination == with.destination);
        CHECK(without.outcome.mass_kept.empty());
        CHECK(with.outcome.mass_kept.size() == 5);
    }
}

TEST_CASE("a job serves every grouping of heads") {
    auto const backend = make_cpu_backend(2);
    for (std::uint32_t const kv_heads : {1U, 3U})
        for (std::uint32_t const group : {1U, 3U, 4U, 7U, 8U}) {
            CAPTURE(kv_heads);
            CAPTURE(group);
            auto spec = small_spec();
            spec.geometry.kv_heads = kv_heads;
            spec.geometry.q_heads = kv_heads * group;
            run_and_check(*backend, spec, 13, Order::HeadMajor);
        }
}

TEST_CASE("a job keeps exactly its capacity on awkward prompts") {
    auto const backend = make_cpu_backend(2);
    struct Case {
        std::uint32_t capacity, window, layers, tokens;
    };
    constexpr std::array cases{
        Case{8, 8, 5, 9},     // base 0, one prefix token
        Case{8, 8, 5, 100},   // base 0
        Case{9, 8, 30, 10},   // fewer prefix tokens than layers
        Case{20, 8, 30, 39},  // just above window + layers
        Case{64, 8, 6, 65},   // just above the capacity
        Case{2, 1, 3, 50},    // the smallest window
        Case{40, 32, 1, 90},  // one layer
    };
    for (Case const& c : cases)
        for (char const* const policy : kCompressing) {
            CAPTURE(policy);
            CAPTURE(c.capacity);
            CAPTURE(c.tokens);
            JobSpec const spec{
                .geometry = {.layers = c.layers, .q_heads = 3, .kv_heads = 3, .head_dim = 4},
                .prompt_tokens = c.tokens,
                .params =
                    resolve({.name = policy, .capacity = c.capacity, .window = c.window}).value()};
            run_and_check(*backend, spec, 14, Order::HeadMajor);
        }
}

TEST_CASE("a job that stages ends with the same bytes as one that does not") {
    auto const backend = make_cpu_backend(2);
    auto spec = small_spec();
    auto const prompt = fake_prompt(spec, 15);

    auto const staged = run_job(*backend, spec, prompt);
    spec.progressive = false;
    auto const whole = run_job(*backend, spec, prompt);

    CHECK_FALSE(staged.staging.empty());
    CHECK(whole.staging.empty());
    CHECK(staged.destination == whole.destination);
    CHECK(staged.outcome.lengths == whole.outcome.lengths);
    CHECK(staged.outcome.mass_kept == whole.outcome.mass_kept);
}

TEST_CASE("a layer whose budget is known is committed at once") {
    auto const backend = make_cpu_backend(1);
    for (char const* const policy :
         {"streamingllm", "h2o", "snapkv", "pyramidkv", "knorm", "keydiff"}) {
        CAPTURE(policy);
        auto const spec = small_spec(policy);
        auto const run = run_job(*backend, spec, fake_prompt(spec, 16));

        REQUIRE(run.events.size() == spec.geometry.layers);
        for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
            CHECK(run.events[layer].layer == layer);
            CHECK(run.events[layer].stage == LayerStage::Committed);
            CHECK(run.events[layer].lengths == run.packed[layer].lengths);
            CHECK(run.events[layer].destination_offset == run.packed[layer].destination_offset);
        }
    }
}

TEST_CASE("a layer that waits is staged, then trimmed at updates, and never grows") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec();
    auto const run = run_job(*backend, spec, fake_prompt(spec, 17));

    std::vector<std::vector<std::uint32_t>> lengths(spec.geometry.layers);
    std::uint32_t staged = 0;
    for (LayerProgress const& event : run.events) {
        if (event.stage == LayerStage::Staged) {
            CHECK(event.layer == staged++);
            CHECK(event.lengths == std::vector<std::uint32_t>{34, 34});
        } else {
            CHECK(event.stage == LayerStage::Trimmed);
            CHECK(event.layer < staged);
            CHECK(event.lengths[0] < lengths[event.layer][0]);
        }
        lengths[event.layer] = event.lengths;
    }
    CHECK(staged == spec.geometry.layers);
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        CHECK(lengths[layer] == run.packed[layer].lengths);
    CHECK(std::ranges::max(run.outcome.lengths) > std::ranges::min(run.outcome.lengths) + 10);
}

TEST_CASE("a layer that waits in its source is reported as scored, and not trimmed") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.progressive = false;
    auto const run = run_job(*backend, spec, fake_prompt(spec, 18));

    REQUIRE(run.events.size() == spec.geometry.layers);
    for (LayerProgress const& event : run.events)
        CHECK(event.stage == LayerStage::Scored);
}

TEST_CASE("a staged segment is the window, then the prefix in rank order") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec();
    auto const prompt = fake_prompt(spec, 19);
    auto const expected = expected_of(spec, prompt);
    auto const run = run_job(*backend, spec, prompt);

    StagingLayout const layout{.geometry = spec.geometry, .rows_max = needs_of(spec).stage_rows};
    std::uint64_t const row_bytes = spec.geometry.row_bytes();
    bool equal = true;
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        for (std::uint32_t head = 0; head < 2; ++head)
            for (std::uint32_t row = 0; row < layout.rows_max; ++row) {
                std::uint32_t const token =
                    row < 4
                        ? 86 + row
                        : static_cast<std::uint32_t>(expected.layers[layer].ranks[head][row - 4]);
                auto const* const staging = run.staging.data() + row * row_bytes;
                equal = equal &&
                        std::memcmp(staging + layout.keys_offset(layer, head),
                                    prompt[layer].keys.view().row(head, token), row_bytes) == 0 &&
                        std::memcmp(staging + layout.values_offset(layer, head),
                                    prompt[layer].values.view().row(head, token), row_bytes) == 0;
            }
    CHECK(equal);
}

TEST_CASE("a staged layer's source is not read again") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec();
    auto const prompt = fake_prompt(spec, 20);
    auto scratch = prompt;

    auto const run = run_job(*backend, spec, [&](std::uint32_t layer) {
        if (layer > 0) scratch[layer - 1] = {};  // Freed: the address sanitizer would see a read.
        return scratch[layer].source();
    });

    check_run(run, spec, prompt);
}

TEST_CASE("a layer that is packed already returns its place again") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec();
    auto const prompt = fake_prompt(spec, 21);
    JobNeeds const needs = needs_of(spec);
    std::vector<std::byte> staging(needs.staging_bytes);
    std::vector<std::byte> destination(needs.destination_bytes);
    auto const job = Job::open(*backend, spec, staging, destination).value();
    for (std::uint32_t layer = 0; layer < 5; ++layer)
        REQUIRE(job->layer_ready(layer, prompt[layer].source()));

    auto const first = job->pack(0);
    REQUIRE(first);
    REQUIRE(job->pack(1));
    auto const again = job->pack(0);

    REQUIRE(again);
    CHECK(again.value().destination_offset == first.value().destination_offset);
    CHECK(again.value().lengths == first.value().lengths);
}
