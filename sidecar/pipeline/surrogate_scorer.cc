#include "sidecar/pipeline/surrogate_scorer.h"

namespace dkv {
namespace {

Result<BackendArray<float>> uploaded(Backend& backend, std::vector<float> const& values) {
    auto array = DKV_TRY(BackendArray<float>::create(backend, values.size()));
    DKV_TRY(
        backend.upload(std::as_bytes(std::span(values)), std::as_writable_bytes(array.elements())));
    return array;
}

}  // namespace

Result<SurrogateScorer> SurrogateScorer::create(Backend& backend,
                                                std::shared_ptr<Surrogate const> surrogate,
                                                std::uint32_t prompt_tokens) {
    SurrogateScorer scorer;
    scorer.backend_ = &backend;
    scorer.weights_ = DKV_TRY(uploaded(backend, surrogate->weights));
    scorer.turns_ = DKV_TRY(uploaded(backend, turns(surrogate->frequencies, prompt_tokens)));
    scorer.surrogate_ = std::move(surrogate);
    return scorer;
}

Result<void> SurrogateScorer::score(std::uint32_t layer,
                                    RowsView const& keys,
                                    RowsView const& values,
                                    std::uint32_t window,
                                    std::span<float const> attention,
                                    std::span<float> scores) const {
    std::size_t const count = surrogate_->kv_heads * surrogate_->features();
    return backend_->surrogate({.keys = keys,
                                .values = values,
                                .weights = weights_.elements().subspan(layer * count, count),
                                .turns = turns_.elements(),
                                .attention = attention,
                                .scores = scores,
                                .window = window,
                                .pairs = static_cast<std::uint32_t>(surrogate_->frequencies.size()),
                                .interleaved = surrogate_->interleaved});
}

}  // namespace dkv
