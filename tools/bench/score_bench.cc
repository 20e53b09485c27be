// Bytes are those of the keys, once: what a score with nothing but memory in its way would take.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Dtype dtype,
         std::uint32_t tokens) {
    Rows const queries(dtype, model.q_heads, kWindow, model.head_dim);
    Rows const keys(dtype, model.kv_heads, tokens, model.head_dim);
    std::vector<float> scores(std::size_t{model.kv_heads} * (tokens - kWindow));
    ScoreArgs args;
    args.queries = queries.view;
    args.keys = keys.view;
    args.scores = scores;

    for (auto _ : state) {
        require(state, backend.score(args));
        benchmark::DoNotOptimize(scores.data());
    }

    count_bytes(state, static_cast<double>(keys.bytes.size()), ceiling.read);
    double const products = static_cast<double>(model.q_heads) * kWindow * tokens * model.head_dim;
    state.counters["GFLOP/s"] =
        benchmark::Counter(2 * products / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

void register_score(Backend& backend, Ceiling const& ceiling) {
    for (Model const& model : kModels)
        for (Dtype const dtype : kDtypes)
            for (std::uint32_t const tokens : kTokens)
                add(ceiling, name("score", model, name_of(dtype), tokens),
                    [=, &backend, &model](benchmark::State& state) {
                        run(state, backend, ceiling, model, dtype, tokens);
                    });
}

}  // namespace dkv::bench
