// Bytes are those of the keys: once for the norm, twice for the difference.
#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Dtype dtype,
         std::uint32_t tokens,
         KeyMeasure measure) {
    Rows const keys(dtype, model.kv_heads, tokens, model.head_dim);
    std::vector<float> scores(std::size_t{model.kv_heads} * (tokens - kWindow));
    KeyScoreArgs const args{
        .keys = keys.view, .scores = scores, .window = kWindow, .measure = measure};

    for (auto _ : state) {
        require(state, backend.key_score(args));
        benchmark::DoNotOptimize(scores.data());
    }

    double const passes = measure == KeyMeasure::Norm ? 1 : 2;
    count_bytes(state, passes * static_cast<double>(keys.bytes.size()), ceiling.read);
}

}  // namespace

void register_key_score(Backend& backend, Ceiling const& ceiling) {
    for (KeyMeasure const measure : {KeyMeasure::Norm, KeyMeasure::Difference})
        for (Model const& model : kModels)
            for (Dtype const dtype : kDtypes)
                for (std::uint32_t const tokens : kTokens)
                    add(ceiling,
                        name(measure == KeyMeasure::Norm ? "key_norm" : "key_diff", model,
                             name_of(dtype), tokens),
                        [=, &backend, &model](benchmark::State& state) {
                            run(state, backend, ceiling, model, dtype, tokens, measure);
                        });
}

}  // namespace dkv::bench
