// What the benchmarks share: the models whose caches they stand for, and how they count.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "kernels/backend.h"

namespace dkv::bench {

struct Model {
    char const* name;
    std::uint32_t layers;
    std::uint32_t q_heads;
    std::uint32_t kv_heads;
    std::uint32_t head_dim;
};

inline constexpr std::array<Model, 2> kModels{{
    {"smollm2-135m", 30, 9, 3, 64},
    {"llama-3-8b", 32, 32, 8, 128},
}};
inline constexpr std::array<std::uint32_t, 2> kTokens{4096, 32768};
inline constexpr std::array<Dtype, 3> kDtypes{Dtype::F32, Dtype::F16, Dtype::Bf16};
inline constexpr std::uint32_t kWindow = 32;

/// What memory gives, in bytes per second, on as many threads as the backend uses. One thread is
/// timed by its own clock, so that a busy machine gives the same figures; several by the wall's.
struct Ceiling {
    unsigned threads = 1;
    double read = 0;
    double copy = 0;  ///< Bytes read and bytes written together.
};

Ceiling measure_ceiling(unsigned threads);

/// "score/llama-3-8b/bf16/4096": the key that tools/bench/run.py joins on.
inline std::string name(char const* op,
                        Model const& model,
                        std::string_view dtype,
                        std::uint32_t tokens) {
    return std::string(op) + "/" + model.name + "/" + std::string(dtype) + "/" +
           std::to_string(tokens);
}

/// GB/s, and their ratio to what memory gives.
inline void count_bytes(benchmark::State& state, double bytes, double ceiling) {
    state.counters["GB/s"] =
        benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_ceiling"] =
        benchmark::Counter(bytes / ceiling, benchmark::Counter::kIsIterationInvariantRate);
}

inline void require(benchmark::State& state, Result<void> const& result) {
    if (!result) state.SkipWithError(result.error().message.c_str());
}

template <class Body>
void add(Ceiling const& ceiling, std::string const& name, Body body) {
    auto* const added = benchmark::RegisterBenchmark(name.c_str(), std::move(body));
    added->Unit(benchmark::kMillisecond);
    if (ceiling.threads > 1) added->UseRealTime();
}

/// An op over scores, which are f32: for every model and length.
template <class Run>
void add_sizes(Backend& backend, Ceiling const& ceiling, char const* op, Run run) {
    for (Model const& model : kModels)
        for (std::uint32_t const tokens : kTokens)
            add(ceiling, name(op, model, "f32", tokens),
                [=, &backend, &model](benchmark::State& state) {
                    run(state, backend, ceiling, model, tokens);
                });
}

/// Rows of small numbers in any dtype.
struct Rows {
    Rows(Dtype dtype, std::uint32_t heads, std::uint32_t tokens, std::uint32_t head_dim);

    std::vector<std::byte> bytes;
    RowsView view;
};

/// Positive and skewed, as attention is.
std::vector<float> random_scores(std::size_t count, std::uint32_t seed);

void register_score(Backend& backend, Ceiling const& ceiling);
void register_accumulate(Backend& backend, Ceiling const& ceiling);
void register_key_score(Backend& backend, Ceiling const& ceiling);
void register_surrogate(Backend& backend, Ceiling const& ceiling);
void register_pool(Backend& backend, Ceiling const& ceiling);
void register_select(Backend& backend, Ceiling const& ceiling);
void register_sum(Backend& backend, Ceiling const& ceiling);
void register_tally(Backend& backend, Ceiling const& ceiling);
void register_gather(Backend& backend, Ceiling const& ceiling);

}  // namespace dkv::bench
