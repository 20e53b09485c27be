// Bytes are those of the keys and the queries, once. 32768 tokens are left out: all of them against
// all take minutes.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Dtype dtype,
         std::uint32_t tokens) {
    Rows const queries(dtype, model.q_heads, tokens, model.head_dim);
    Rows const keys(dtype, model.kv_heads, tokens, model.head_dim);
    std::vector<float> scores(std::size_t{model.kv_heads} * (tokens - kWindow));
    AccumulateArgs args;
    args.queries = queries.view;
    args.keys = keys.view;
    args.scores = scores;
    args.window = kWindow;

    for (auto _ : state) {
        require(state, backend.accumulate(args));
        benchmark::DoNotOptimize(scores.data());
    }

    count_bytes(state, static_cast<double>(keys.bytes.size() + queries.bytes.size()), ceiling.read);
    // Half of them are masked; what is left is multiplied twice.
    double const products = static_cast<double>(model.q_heads) * tokens * tokens * model.head_dim;
    state.counters["GFLOP/s"] =
        benchmark::Counter(2 * products / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

void register_accumulate(Backend& backend, Ceiling const& ceiling) {
    std::uint32_t const tokens = kTokens.front();
    for (Model const& model : kModels)
        for (Dtype const dtype : kDtypes)
            add(ceiling, name("accumulate", model, name_of(dtype), tokens),
                [=, &backend, &model](benchmark::State& state) {
                    run(state, backend, ceiling, model, dtype, tokens);
                });
}

}  // namespace dkv::bench
