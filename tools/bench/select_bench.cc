// The most that DynamicKV stages of a layer at capacity 512: ten times the base.
#include <algorithm>

#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

constexpr std::uint32_t kKeep = 10 * (512 - kWindow);

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         std::uint32_t tokens) {
    auto const scores = random_scores(std::size_t{model.kv_heads} * tokens, 1);
    std::vector<std::uint32_t> const keep(model.kv_heads, std::min(kKeep, tokens / 2));
    std::vector<std::int32_t> ids(std::size_t{model.kv_heads} * keep[0]);
    for (auto _ : state) {
        require(state, backend.select({scores, keep, ids, tokens}));
        benchmark::DoNotOptimize(ids.data());
    }
    count_bytes(state, static_cast<double>(sizeof(float) * scores.size()), ceiling.read);
}

}  // namespace

void register_select(Backend& backend, Ceiling const& ceiling) {
    add_sizes(backend, ceiling, "select", run);
}

}  // namespace dkv::bench
