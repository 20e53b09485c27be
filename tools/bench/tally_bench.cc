// The last and largest update of a prompt: all layers, capacity 512.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         std::uint32_t tokens) {
    std::size_t const layer_scores = std::size_t{model.kv_heads} * tokens;
    auto const scores = random_scores(model.layers * layer_scores, 1);
    std::vector<std::span<float const>> layers;
    for (std::uint32_t layer = 0; layer < model.layers; ++layer)
        layers.push_back(std::span(scores).subspan(layer * layer_scores, layer_scores));
    std::vector<std::uint64_t> counts(std::size_t{model.layers} * model.kv_heads);
    std::uint64_t const total = counts.size() * (512 - kWindow);
    for (auto _ : state) {
        require(state, backend.tally({layers, counts, model.kv_heads, tokens, total}));
        benchmark::DoNotOptimize(counts.data());
    }
    count_bytes(state, static_cast<double>(sizeof(float) * scores.size()), ceiling.read);
}

}  // namespace

void register_tally(Backend& backend, Ceiling const& ceiling) {
    add_sizes(backend, ceiling, "tally", run);
}

}  // namespace dkv::bench
