#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Pool pool,
         std::uint32_t tokens) {
    auto const scores = random_scores(std::size_t{model.kv_heads} * tokens, 1);
    std::vector<float> out(scores.size());
    for (auto _ : state) {
        require(state, backend.pool({scores, out, model.kv_heads, tokens, 7, pool}));
        benchmark::DoNotOptimize(out.data());
    }
    count_bytes(state, static_cast<double>(2 * sizeof(float) * out.size()), ceiling.copy);
}

}  // namespace

void register_pool(Backend& backend, Ceiling const& ceiling) {
    for (Model const& model : kModels)
        for (Pool const pool : {Pool::Max, Pool::Avg})
            for (std::uint32_t const tokens : kTokens)
                add(ceiling,
                    name(pool == Pool::Max ? "pool_max" : "pool_avg", model, "f32", tokens),
                    [=, &backend, &model](benchmark::State& state) {
                        run(state, backend, ceiling, model, pool, tokens);
                    });
}

}  // namespace dkv::bench
