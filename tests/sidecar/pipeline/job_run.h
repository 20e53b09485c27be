// Drives a job as a session does.
#pragma once

#include <functional>

#include <doctest/doctest.h>

#include "tests/sidecar/pipeline/fake_prompt.h"
#include "tests/support/results.h"

namespace dkv {

/// dynamickv on a small model: 5 layers, so that the last update is not due by m.
inline JobSpec small_spec(char const* policy = "dynamickv") {
    return {.geometry = {.layers = 5, .q_heads = 4, .kv_heads = 2, .head_dim = 8},
            .prompt_tokens = 90,
            .params = resolve({.name = policy,
                               .capacity = 14,
                               .window = 4,
                               .kernel = 3,
                               .r_max = 3.0,
                               .update_interval = 2})
                          .value(),
            .progressive = true};
}

struct JobRun {
    std::vector<std::byte> staging;
    std::vector<std::byte> destination;
    std::vector<LayerProgress> events;  ///< Of every layer_ready, in order.
    std::vector<LayerProgress> packed;
    JobOutcome outcome;

    /// [kv_heads] positions of a packed layer.
    std::vector<std::vector<std::int32_t>> positions(Geometry const& geometry,
                                                     std::uint32_t layer) const {
        LayerProgress const& at = packed[layer];
        PackedLayer const place = packed_layer(geometry, at.lengths, at.destination_offset);
        std::vector<std::vector<std::int32_t>> result;
        for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
            auto& list = result.emplace_back(at.lengths[head]);
            std::memcpy(list.data(),
                        destination.data() + place.positions_offset +
                            sizeof(std::int32_t) * place.head_rows[head],
                        4 * list.size());
        }
        return result;
    }
};

using SourceOf = std::function<LayerSource(std::uint32_t)>;

inline JobRun run_job(Backend& backend, JobSpec const& spec, SourceOf const& source_of) {
    JobNeeds const needs = needs_of(spec);
    JobRun run;
    run.staging.resize(needs.staging_bytes);
    run.destination.resize(needs.destination_bytes);
    auto job = Job::open(backend, spec, run.staging, run.destination);
    REQUIRE(job);
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
        CHECK(job.value()->layers_done() == layer);
        auto const happened = job.value()->layer_ready(layer, source_of(layer));
        REQUIRE(happened);
        run.events.insert(run.events.end(), happened.value().begin(), happened.value().end());
    }
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
        auto const packed = job.value()->pack(layer);
        REQUIRE(packed);
        run.packed.push_back(packed.value());
    }
    auto const outcome = job.value()->outcome();
    REQUIRE(outcome);
    run.outcome = outcome.value();
    CHECK(job.value()->lengths() == run.outcome.lengths);
    return run;
}

inline JobRun run_job(Backend& backend, JobSpec const& spec, std::vector<FakeLayer> const& prompt) {
    return run_job(backend, spec, [&](std::uint32_t layer) { return prompt[layer].source(); });
}

}  // namespace dkv
