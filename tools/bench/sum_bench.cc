// What a layer costs before it is compared with others: its scores added up.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         std::uint32_t tokens) {
    auto const scores = random_scores(std::size_t{model.kv_heads} * tokens, 1);
    std::vector<double> sums(model.kv_heads);
    for (auto _ : state) {
        require(state, backend.sum({scores, sums, model.kv_heads, tokens}));
        benchmark::DoNotOptimize(sums.data());
    }
    count_bytes(state, static_cast<double>(sizeof(float) * scores.size()), ceiling.read);
}

}  // namespace

void register_sum(Backend& backend, Ceiling const& ceiling) {
    add_sizes(backend, ceiling, "sum", run);
}

}  // namespace dkv::bench
