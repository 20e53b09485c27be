// A prompt's memory is there before its first op: whatever the ops then ask for, the pool does not
// grow.
#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "kernels/cuda/ops.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/pipeline/spec.h"
#include "tests/kernels/queue/made.h"

using namespace dkv;
using cuda::Queue;

namespace {

using test::make_queue;
using test::value_of;

std::uint64_t most_used(Queue const& queue) {
    std::uint64_t bytes = 0;
    REQUIRE(cudaMemPoolGetAttribute(queue.pool(), cudaMemPoolAttrUsedMemHigh, &bytes) ==
            cudaSuccess);
    return bytes;
}

std::uint64_t kept_free(Queue const& queue) {
    std::uint64_t bytes = 0;
    REQUIRE(cudaMemPoolGetAttribute(queue.pool(), cudaMemPoolAttrReleaseThreshold, &bytes) ==
            cudaSuccess);
    return bytes;
}

/// Device memory of another pool: an engine's.
class Lent {
public:
    Lent(Backend& engine, RowsView shape, std::uint32_t seed) : view_(shape) {
        std::vector<std::byte> bytes(value_of(extent_bytes(shape)));
        std::minstd_rand random(seed);
        for (std::byte& byte : bytes)
            byte = static_cast<std::byte>(random() % 60);  // Small numbers in any dtype.
        buffer_ = value_of(engine.allocate(bytes.size()));
        REQUIRE(engine.upload(bytes, buffer_->bytes()));
        REQUIRE(engine.synchronize());
        view_.data = buffer_->bytes().data();
        view_.place = Place::Device;
    }
    RowsView const& view() const { return view_; }

private:
    RowsView view_;
    std::unique_ptr<BackendBuffer> buffer_;
};

JobSpec spec_of(char const* policy) {
    JobSpec spec;
    spec.geometry = {.layers = 5, .q_heads = 6, .kv_heads = 2, .head_dim = 24, .dtype = Dtype::F16};
    spec.prompt_tokens = 300;
    spec.params.name = policy;
    spec.params.capacity = 60;
    spec.params.window = 8;
    spec.params.update_interval = 2;
    return spec;
}

struct Prompt {
    std::vector<Lent> keys, values, queries, scores;

    Prompt(Backend& engine, JobSpec const& spec, bool by_engine) {
        Geometry const& g = spec.geometry;
        for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
            auto const rows =
                dense_rows(nullptr, g.dtype, g.kv_heads, spec.prompt_tokens, g.head_dim);
            keys.emplace_back(engine, rows, 4 * layer + 1);
            values.emplace_back(engine, rows, 4 * layer + 2);
            if (by_engine)
                scores.emplace_back(
                    engine, dense_rows(nullptr, Dtype::F32, g.q_heads, spec.prompt_tokens, 1),
                    4 * layer + 3);
            else if (std::uint32_t const wanted = needs_of(spec).window; wanted != 0)
                queries.emplace_back(engine,
                                     dense_rows(nullptr, g.dtype, g.q_heads, wanted, g.head_dim),
                                     4 * layer + 3);
        }
    }
    LayerSource source(std::uint32_t layer) const {
        LayerSource source;
        source.keys = keys[layer].view();
        source.values = values[layer].view();
        if (!queries.empty()) source.queries = queries[layer].view();
        if (!scores.empty()) source.scores = scores[layer].view();
        return source;
    }
};

/// The most that the pool had in use before the first layer, and after the last.
void run_within(Backend& engine, JobSpec const& spec, bool by_engine) {
    std::shared_ptr<Queue> const queue = make_queue();
    auto const backend = cuda::make_backend_on(queue, "tested");
    JobNeeds const needs = needs_of(spec);
    auto const staging = value_of(engine.allocate(needs.staging_bytes));
    auto const destination = value_of(engine.allocate(needs.destination_bytes));
    Prompt const prompt(engine, spec, by_engine);
    auto const threshold = kept_free(*queue);
    {
        auto const job =
            value_of(Job::open(*backend, spec, staging->bytes(), destination->bytes()));
        std::uint64_t const reserved = most_used(*queue);
        for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
            REQUIRE(job->layer_ready(layer, prompt.source(layer)));
        for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
            REQUIRE(job->pack(layer));
        REQUIRE(job->outcome());
        CHECK(most_used(*queue) == reserved);
        // Without what the driver's rounding is given on top.
        auto const policy = make_policy(spec.params, shape_of(spec));
        CHECK(queue->buffers_bytes_high() <= sizes_of(spec, *policy).buffers_bytes);
    }
    CHECK(kept_free(*queue) == threshold);
}

}  // namespace

TEST_CASE("a session's pool is as large when it is opened as it will ever be") {
    auto const engine = value_of(make_cuda_backend());
    for (char const* const policy :
         {"streamingllm", "h2o", "snapkv", "pyramidkv", "dynamickv", "knorm", "keydiff"})
        for (bool const progressive : {true, false}) {
            CAPTURE(policy);
            CAPTURE(progressive);
            JobSpec spec = spec_of(policy);
            spec.progressive = progressive;
            run_within(*engine, spec, false);
        }
}

TEST_CASE("… also where the engine scores, kernels are long and groups count by their largest") {
    auto const engine = value_of(make_cuda_backend());
    JobSpec spec = spec_of("dynamickv");
    spec.params.kernel = 63;
    spec.params.pool = Pool::Avg;
    spec.params.score_norm = ScoreNorm::Layer;
    run_within(*engine, spec, false);
    run_within(*engine, spec, true);
    spec = spec_of("h2o");
    spec.params.reduce = GroupReduce::Max;
    spec.geometry.dtype = Dtype::F32;
    run_within(*engine, spec, false);
}

TEST_CASE("sessions of one engine have room beside each other, and give it back one by one") {
    std::shared_ptr<Queue> const queue = make_queue();
    auto const least = kept_free(*queue);
    Queue::Room const large{.scratch_bytes = std::uint64_t{100} << 20U,
                            .buffers_bytes = std::uint64_t{50} << 20U};
    Queue::Room const small{.scratch_bytes = std::uint64_t{1} << 20U,
                            .buffers_bytes = std::uint64_t{30} << 20U};
    REQUIRE(queue->hold(large));
    auto const one = kept_free(*queue);
    CHECK(one >= std::uint64_t{150} << 20U);
    auto* const buffer = value_of(queue->allocate(large.buffers_bytes));
    REQUIRE(queue->hold(small));
    CHECK(kept_free(*queue) >= one + small.buffers_bytes);
    std::uint64_t const reserved = most_used(*queue);
    queue->begin();
    REQUIRE(queue->scratch<std::byte>(large.scratch_bytes));
    auto* const other = value_of(queue->allocate(small.buffers_bytes));
    CHECK(most_used(*queue) == reserved);

    queue->release(buffer);
    queue->let_go(large);
    CHECK(kept_free(*queue) < one);
    queue->release(other);
    queue->let_go(small);
    CHECK(kept_free(*queue) == least);
}

TEST_CASE("room that the device has not is refused, and nothing is held for it") {
    std::shared_ptr<Queue> const queue = make_queue();
    auto const least = kept_free(*queue);
    constexpr std::uint64_t kFar = std::uint64_t{1} << 50U;
    for (Queue::Room const room : {Queue::Room{kFar, 1}, Queue::Room{1, kFar}}) {
        auto const refused = queue->hold(room);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == ErrorCode::LimitExceeded);
        CHECK(refused.error().message.starts_with("not enough device memory for 11258999"));
    }
    CHECK(kept_free(*queue) == least);
    queue->begin();
    CHECK(queue->scratch<float>(1000));
}

TEST_CASE("keys too long for attention's kernels are no reason to refuse what ranks without it") {
    PromptSizes sizes;
    sizes.dtype = Dtype::F16;
    sizes.layers = 1;
    sizes.q_heads = sizes.kv_heads = 2;
    sizes.head_dim = 1024;
    sizes.tokens = 100;
    sizes.window = 10;
    sizes.scores_keys = true;
    CHECK(cuda::scratch_bytes(sizes));
}

TEST_CASE("no op asks for more scratch than a prompt of its sizes is said to want") {
    std::shared_ptr<Queue> const queue = make_queue();
    auto const engine = value_of(make_cuda_backend());
    std::mt19937 random(std::random_device{}());
    auto const below = [&](std::uint32_t end) {
        return static_cast<std::uint32_t>(random() % end);
    };
    for (int round = 0; round < 10; ++round) {
        CAPTURE(round);
        PromptSizes sizes;
        sizes.dtype = std::array{Dtype::F32, Dtype::F16, Dtype::Bf16}[below(3)];
        sizes.layers = 1 + below(4);
        sizes.kv_heads = 1 + below(3);
        sizes.q_heads = sizes.kv_heads * (1 + below(5));
        sizes.head_dim = 4 * (1 + below(20));
        sizes.window = 1 + below(40);
        sizes.tokens = sizes.window + 1 + below(900);
        sizes.accumulates = sizes.scores_keys = sizes.tallies = true;
        sizes.reduce = GroupReduce::Max;
        sizes.kernel = round % 2 == 0 ? 31 : 33;  // Of a short one and of a long one.
        std::uint32_t const prefix = sizes.tokens - sizes.window;
        std::vector<std::uint32_t> const keep(sizes.kv_heads, 1 + below(prefix));
        sizes.ids = std::uint64_t{sizes.kv_heads} * keep[0];
        std::uint64_t const said = value_of(cuda::scratch_bytes(sizes));
        std::uint64_t most = 0;

        auto const rows = [&](std::uint32_t heads, std::uint32_t tokens) {
            return dense_rows(nullptr, sizes.dtype, heads, tokens, sizes.head_dim);
        };
        Lent const keys(*engine, rows(sizes.kv_heads, sizes.tokens), 1);
        Lent const window(*engine, rows(sizes.q_heads, sizes.window), 2);
        Lent const queries(*engine, rows(sizes.q_heads, sizes.tokens), 3);
        std::size_t const count = std::size_t{sizes.kv_heads} * prefix;
        auto const scores_at = value_of(engine->allocate(count * 4));
        auto const pooled_at = value_of(engine->allocate(count * 4));
        auto const ids_at = value_of(engine->allocate(sizes.ids * 4));
        REQUIRE(engine->synchronize());
        std::span const scores(reinterpret_cast<float*>(scores_at->bytes().data()), count);
        std::span const pooled(reinterpret_cast<float*>(pooled_at->bytes().data()), count);
        std::span const ids(reinterpret_cast<std::int32_t*>(ids_at->bytes().data()), sizes.ids);

        auto const within = [&](char const* op, Result<void> const& done) {
            CAPTURE(op);
            REQUIRE(done);
            CHECK(queue->op_bytes() <= said);
            most = std::max(most, queue->op_bytes());
        };
        std::vector<float> const sinks(sizes.q_heads, 1);
        within("score", cuda::score({.queries = window.view(),
                                     .keys = keys.view(),
                                     .scores = scores,
                                     .mass = {},
                                     .sink_logits = sinks},
                                    *queue));
        within("accumulate", cuda::accumulate({.queries = queries.view(),
                                               .keys = keys.view(),
                                               .scores = scores,
                                               .window = sizes.window,
                                               .reduce = sizes.reduce,
                                               .sink_logits = sinks},
                                              *queue));
        within("key_score", cuda::key_score({.keys = keys.view(),
                                             .scores = scores,
                                             .window = sizes.window,
                                             .measure = KeyMeasure::Difference},
                                            *queue));
        within("pool", cuda::pool({.scores = scores,
                                   .out = pooled,
                                   .heads = sizes.kv_heads,
                                   .tokens = prefix,
                                   .kernel = sizes.kernel,
                                   .pool = Pool::Avg},
                                  *queue));
        within(
            "select",
            cuda::select({.scores = pooled, .keep = keep, .ids = ids, .tokens = prefix}, *queue));
        std::vector<std::span<float const>> const layers(sizes.layers, pooled);
        std::vector<std::uint64_t> counts(std::size_t{sizes.layers} * sizes.kv_heads);
        within("tally", cuda::tally({.layers = layers,
                                     .counts = counts,
                                     .heads = sizes.kv_heads,
                                     .tokens = prefix,
                                     .total = 1},
                                    *queue));
        std::vector<double> sums(sizes.kv_heads);
        within(
            "sum",
            cuda::sum({.scores = pooled, .sums = sums, .heads = sizes.kv_heads, .tokens = prefix},
                      *queue));
        REQUIRE(queue->synchronize());
        CHECK(said <= std::max(8 * most, std::uint64_t{1} << 20U));  // Nor much more.
    }
}
