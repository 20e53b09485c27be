// What a job refuses, and in which words; and that a failing device leaves it usable.
#include <limits>
#include <string>

#include <doctest/doctest.h>

#include "sidecar/pipeline/layer_source.h"
#include "tests/sidecar/pipeline/job_run.h"
#include "tests/support/failing_backend.h"

using namespace dkv;

namespace {

template <class T>
void check_refused(Result<T> const& result, ErrorCode code, std::string const& message) {
    REQUIRE_FALSE(result);
    CHECK(result.error().code == code);
    CHECK(result.error().message == message);
}

/// An open job and all it lives on.
struct OpenJob {
    explicit OpenJob(JobSpec const& the_spec, Backend* other = nullptr)
        : spec(the_spec),
          prompt(fake_prompt(spec, 41)),
          staging(needs_of(spec).staging_bytes),
          destination(needs_of(spec).destination_bytes) {
        auto opened = Job::open(other ? *other : *backend, spec, staging, destination);
        REQUIRE(opened);
        job = std::move(opened).value();
    }

    JobSpec spec;
    std::vector<FakeLayer> prompt;
    std::vector<std::byte> staging;
    std::vector<std::byte> destination;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    std::unique_ptr<Job> job;
};

void check_layer_refused(LayerSource const& source, OpenJob& open, std::string const& message) {
    check_refused(check(source, open.spec), ErrorCode::InvalidArgument, message);
}

}  // namespace

TEST_CASE("layers come in order, each once") {
    OpenJob open(small_spec());

    check_refused(open.job->layer_ready(1, open.prompt[1].source()), ErrorCode::BadState,
                  "layer 1 comes when layer 0 is next");
    REQUIRE(open.job->layer_ready(0, open.prompt[0].source()));
    check_refused(open.job->layer_ready(0, open.prompt[0].source()), ErrorCode::BadState,
                  "layer 0 comes when layer 1 is next");
    for (std::uint32_t layer = 1; layer < 5; ++layer)
        REQUIRE(open.job->layer_ready(layer, open.prompt[layer].source()));
    check_refused(open.job->layer_ready(5, open.prompt[0].source()), ErrorCode::BadState,
                  "layer 5 comes after all 5 layers");
}

TEST_CASE("h2o wants every query, or scores") {
    OpenJob open(small_spec("h2o"));
    LayerSource source = open.prompt[0].source();
    source.queries.tokens = 4;
    check_layer_refused(source, open, "queries is [4, 4, 8], not [4, 90, 8]");
    source.queries = {};
    check_layer_refused(source, open,
                        "there are neither queries nor scores, and h2o ranks tokens by them");
}

TEST_CASE("packing waits for the last layer and goes in order, and the outcome for both") {
    OpenJob open(small_spec());
    REQUIRE(open.job->layer_ready(0, open.prompt[0].source()));

    check_refused(open.job->pack(0), ErrorCode::BadState,
                  "layer 0 cannot be packed when 1 of 5 layers have come");
    check_refused(open.job->outcome(), ErrorCode::BadState, "0 of 5 layers are packed");

    for (std::uint32_t layer = 1; layer < 5; ++layer)
        REQUIRE(open.job->layer_ready(layer, open.prompt[layer].source()));
    REQUIRE(open.job->pack(0));
    check_refused(open.job->pack(2), ErrorCode::BadState,
                  "layer 2 cannot be packed when 1 of 5 are");
    check_refused(open.job->pack(5), ErrorCode::BadState,
                  "layer 5 cannot be packed when 1 of 5 are");
    check_refused(open.job->outcome(), ErrorCode::BadState, "1 of 5 layers are packed");
    for (std::uint32_t layer = 1; layer < 5; ++layer)
        REQUIRE(open.job->pack(layer));
    check_refused(open.job->pack(5), ErrorCode::BadState,
                  "layer 5 cannot be packed when 5 of 5 are");
    CHECK(open.job->outcome());
}

TEST_CASE("a job knows its lengths before its first layer") {
    OpenJob open(small_spec());
    CHECK(open.job->lengths() == std::vector<std::uint32_t>(10, 34));
    OpenJob uniform(small_spec("snapkv"));
    CHECK(uniform.job->lengths() == std::vector<std::uint32_t>(10, 14));
}

TEST_CASE("a view of another dtype is refused by name") {
    OpenJob open(small_spec());
    auto source = open.prompt[0].source();
    source.keys.dtype = Dtype::F16;
    check_layer_refused(source, open, "keys is f16, not f32");

    source = open.prompt[0].source();
    source.values.dtype = Dtype::Bf16;
    check_layer_refused(source, open, "values is bf16, not f32");

    source = open.prompt[0].source();
    source.queries.dtype = Dtype::F16;
    check_layer_refused(source, open, "queries is f16, not f32");

    source = open.prompt[0].source();
    source.scores = dense_rows(source.keys.data, Dtype::F16, 2, 90, 1);
    check_layer_refused(source, open, "scores is f16, not f32");
}

TEST_CASE("a view of another shape is refused with both shapes") {
    OpenJob open(small_spec());
    auto source = open.prompt[0].source();
    source.keys.tokens = 89;
    check_layer_refused(source, open, "keys is [2, 89, 8], not [2, 90, 8]");

    source = open.prompt[0].source();
    source.values.heads = 4;
    check_layer_refused(source, open, "values is [4, 90, 8], not [2, 90, 8]");

    source = open.prompt[0].source();
    source.queries.tokens = 5;
    check_layer_refused(source, open, "queries is [4, 5, 8], not [4, 4, 8]");

    source = open.prompt[0].source();
    source.scores = dense_rows(source.keys.data, Dtype::F32, 3, 90, 1);
    check_layer_refused(source, open, "scores is [3, 90, 1], not [2, 90, 1]");
    source.scores = dense_rows(source.keys.data, Dtype::F32, 4, 86, 1);
    check_layer_refused(source, open, "scores is [4, 86, 1], not [4, 90, 1]");
}

TEST_CASE("a layer without keys or values is refused") {
    OpenJob open(small_spec());
    auto source = open.prompt[0].source();
    source.keys.data = nullptr;
    CHECK_FALSE(check(source, open.spec));

    source = open.prompt[0].source();
    source.values = {};
    source.values.dtype = Dtype::F32;
    check_layer_refused(source, open, "values is [0, 0, 0], not [2, 90, 8]");
}

TEST_CASE("a view whose bytes cannot be counted is refused") {
    OpenJob open(small_spec());
    auto source = open.prompt[0].source();
    source.values.token_stride = std::numeric_limits<std::uint64_t>::max() / 2;
    auto const refused = check(source, open.spec);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::InvalidArgument);
}

TEST_CASE("a policy that ranks by scores wants queries or scores") {
    for (std::string const policy : {"snapkv", "pyramidkv", "dynamickv"}) {
        OpenJob open(small_spec(policy.c_str()));
        auto source = open.prompt[0].source();
        source.queries = {};
        check_layer_refused(
            source, open,
            "there are neither queries nor scores, and " + policy + " ranks tokens by them");
    }
}

TEST_CASE("a scale that is not a number is refused") {
    OpenJob open(small_spec());
    auto source = open.prompt[0].source();
    source.scale = std::numeric_limits<float>::quiet_NaN();
    check_layer_refused(source, open,
                        "scale nan and softcap 0.000000 are not both finite, softcap at least 0");
}

TEST_CASE("a prompt that is kept whole needs nothing and gets no job") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.prompt_tokens = 14;

    auto const needs = needs_of(spec);

    CHECK_FALSE(needs.compress);
    CHECK(needs.window == 0);
    CHECK(needs.stage_rows == 0);
    CHECK(needs.staging_bytes == 0);
    CHECK(needs.destination_bytes == 0);
    check_refused(Job::open(*backend, spec, {}, {}), ErrorCode::InvalidArgument,
                  "a prompt of 14 tokens is kept whole by dynamickv at capacity 14");
    CHECK_FALSE(needs_of(small_spec("fullkv")).compress);
}

TEST_CASE("only layers that wait staged need staging") {
    auto spec = small_spec();
    auto const staged = needs_of(spec);
    CHECK(staged.compress);
    CHECK(staged.window == 4);
    CHECK(staged.stage_rows == 4 + 30);
    // A segment of 34 rows of 32 bytes fits a page; K and V of 2 heads in 5 layers.
    CHECK(staged.staging_bytes == 4096 * 2 * 2 * 5);
    CHECK(staged.destination_bytes == packed_bytes_max(spec.geometry, 140));

    spec.progressive = false;
    auto const in_source = needs_of(spec);
    CHECK(in_source.stage_rows == 0);
    CHECK(in_source.staging_bytes == 0);
    CHECK(in_source.destination_bytes == staged.destination_bytes);

    CHECK(needs_of(small_spec("snapkv")).staging_bytes == 0);
    CHECK(needs_of(small_spec("pyramidkv")).stage_rows == 0);
}

TEST_CASE("regions that are too small or overlap are refused") {
    auto const backend = make_cpu_backend(1);
    auto const spec = small_spec();
    auto const needs = needs_of(spec);
    std::vector<std::byte> region(needs.staging_bytes + needs.destination_bytes);
    std::span<std::byte> const all(region);
    auto const staging = all.first(needs.staging_bytes);
    auto const destination = all.subspan(needs.staging_bytes);

    check_refused(Job::open(*backend, spec, staging.first(100), destination),
                  ErrorCode::InvalidArgument, "staging has 100 bytes of the 81920 needed");
    check_refused(
        Job::open(*backend, spec, staging, destination.first(7)), ErrorCode::InvalidArgument,
        "destination has 7 bytes of the " + std::to_string(needs.destination_bytes) + " needed");
    check_refused(Job::open(*backend, spec, all.subspan(1), destination),
                  ErrorCode::InvalidArgument, "staging and destination overlap");
    CHECK(Job::open(*backend, spec, staging, destination));
}

TEST_CASE("a prompt whose bytes cannot be counted is refused, not computed with") {
    auto const backend = make_cpu_backend(1);
    auto spec = small_spec();
    spec.prompt_tokens = 0x80000000;
    check_refused(Job::open(*backend, spec, {}, {}), ErrorCode::InvalidArgument,
                  "prompt_tokens is 2147483648, too many to count the bytes of their cache");

    spec.geometry = {.layers = 1024, .q_heads = 1024, .kv_heads = 1024, .head_dim = 1024};
    spec.prompt_tokens = 0x7FFFFFFF;
    spec.params.capacity = 0x7FFFFFF0;
    CHECK(needs_of(spec).destination_bytes == std::numeric_limits<std::uint64_t>::max());
    check_refused(Job::open(*backend, spec, {}, {}), ErrorCode::InvalidArgument,
                  "prompt_tokens is 2147483647, too many to count the bytes of their cache");

    spec.geometry.layers = 0;
    check_refused(Job::open(*backend, spec, {}, {}), ErrorCode::InvalidArgument,
                  "layers is 0, not in 1 … 1024");
}

TEST_CASE("a failing device's error comes through, and the same call may be made again") {
    auto per_head = small_spec();
    per_head.params.granularity = Granularity::Head;
    per_head.params.score_norm = ScoreNorm::LayerNoSink;
    auto by_mass = small_spec("snapkv");
    by_mass.params.keep_mass = 0.5;
    for (JobSpec const& spec : {small_spec(), small_spec("snapkv"), per_head, by_mass}) {
        CAPTURE(in_words(spec.params));
        OpenJob reference(spec);
        auto const wanted = run_job(*reference.backend, reference.spec, reference.prompt);
        auto const inner = make_cpu_backend(1);
        bool reached_the_end = false;
        for (int fail_at = 0; !reached_the_end; ++fail_at) {
            CAPTURE(fail_at);
            FailingBackend backend(*inner, fail_at);
            int errors = 0;
            auto const until_it_works = [&](auto call) {
                auto result = call();
                if (!result) {
                    CHECK(result.error().code == ErrorCode::Device);
                    ++errors;
                    result = call();
                }
                REQUIRE(result);
                return std::move(result).value();
            };
            std::vector<std::byte> staging(reference.staging.size());
            std::vector<std::byte> destination(reference.destination.size());

            auto const job = until_it_works(
                [&] { return Job::open(backend, reference.spec, staging, destination); });
            for (std::uint32_t layer = 0; layer < 5; ++layer)
                until_it_works(
                    [&] { return job->layer_ready(layer, reference.prompt[layer].source()); });
            for (std::uint32_t layer = 0; layer < 5; ++layer)
                until_it_works([&] { return job->pack(layer); });

            reached_the_end = !backend.failed();
            CHECK(errors == (reached_the_end ? 0 : 1));
            CHECK(destination == wanted.destination);
            CHECK(job->outcome().value().mass_kept == wanted.outcome.mass_kept);
        }
    }
}
