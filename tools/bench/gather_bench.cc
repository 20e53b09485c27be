// A quarter of each head's rows, in position order, from one layer after another: together they are
// larger than any cache.
#include <algorithm>
#include <numeric>

#include "tools/bench/bench.h"

namespace dkv::bench {
namespace {

constexpr std::size_t kSourceBytes = std::size_t{256} << 20;

void run(benchmark::State& state,
         Backend& backend,
         Ceiling const& ceiling,
         Model const& model,
         Dtype dtype,
         std::uint32_t tokens) {
    Rows const source(dtype, model.kv_heads, tokens, model.head_dim);
    std::size_t const layers = kSourceBytes / source.bytes.size() + 1;
    std::vector<std::vector<std::byte>> const copies(layers, source.bytes);

    std::size_t const keep = tokens / 4;
    std::vector<std::uint32_t> const lengths(model.kv_heads, tokens / 4);
    std::vector<std::int32_t> all(tokens);
    std::iota(all.begin(), all.end(), 0);
    std::vector<std::int32_t> ids(model.kv_heads * keep);
    std::mt19937 random(1);
    std::vector<std::uint64_t> offsets;
    for (std::uint32_t head = 0; head < model.kv_heads; ++head) {
        std::sample(all.begin(), all.end(), ids.begin() + static_cast<std::ptrdiff_t>(head * keep),
                    keep, random);
        offsets.push_back(std::uint64_t{head} * keep * source.view.row_bytes());
    }
    std::size_t const out_bytes = model.kv_heads * keep * source.view.row_bytes();
    std::vector<std::vector<std::byte>> outs(layers, std::vector<std::byte>(out_bytes));

    std::size_t layer = 0;
    for (auto _ : state) {
        RowsView view = source.view;
        view.data = const_cast<std::byte*>(copies[layer].data());
        require(state, backend.gather({view, ids, lengths, outs[layer], offsets}));
        layer = (layer + 1) % layers;
    }
    count_bytes(state, 2.0 * static_cast<double>(out_bytes), ceiling.copy);
}

}  // namespace

void register_gather(Backend& backend, Ceiling const& ceiling) {
    for (Model const& model : kModels)
        for (Dtype const dtype : kDtypes)
            for (std::uint32_t const tokens : kTokens)
                add(ceiling, name("gather", model, name_of(dtype), tokens),
                    [=, &backend, &model](benchmark::State& state) {
                        run(state, backend, ceiling, model, dtype, tokens);
                    });
}

}  // namespace dkv::bench
