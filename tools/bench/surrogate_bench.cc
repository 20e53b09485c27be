// Bytes are those of the keys and the values, which are read once.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Dtype dtype,
         std::uint32_t tokens) {
    Rows const keys(dtype, model.kv_heads, tokens, model.head_dim);
    Rows const values(dtype, model.kv_heads, tokens, model.head_dim);
    std::vector<float> const weights(
        model.kv_heads * surrogate_features(model.kv_heads, model.head_dim), 0.5F);
    std::vector<float> const frequencies(model.head_dim / 2, 0.125F);
    std::vector<float> const table = turns(frequencies, tokens);
    std::vector<float> scores(std::size_t{model.kv_heads} * (tokens - kWindow));
    SurrogateArgs const args{.keys = keys.view,
                             .values = values.view,
                             .weights = weights,
                             .turns = table,
                             .scores = scores,
                             .window = kWindow,
                             .pairs = model.head_dim / 2};

    for (auto _ : state) {
        require(state, backend.surrogate(args));
        benchmark::DoNotOptimize(scores.data());
    }

    count_bytes(state, static_cast<double>(keys.bytes.size() + values.bytes.size()), ceiling.read);
}

}  // namespace

void register_surrogate(Backend& backend, Ceiling const& ceiling) {
    for (Model const& model : kModels)
        for (Dtype const dtype : kDtypes)
            for (std::uint32_t const tokens : kTokens)
                add(ceiling, name("surrogate", model, name_of(dtype), tokens),
                    [=, &backend, &model](benchmark::State& state) {
                        run(state, backend, ceiling, model, dtype, tokens);
                    });
}

}  // namespace dkv::bench
