// A surrogate in a backend's memory, ready to score any layer of one prompt.
#pragma once

#include <memory>

#include "sidecar/pipeline/backend_array.h"
#include "sidecar/policy/profile.h"

namespace dkv {

class SurrogateScorer {
public:
    SurrogateScorer() = default;

    /// `backend` outlives it.
    static Result<SurrogateScorer> create(Backend& backend,
                                          std::shared_ptr<Surrogate const> surrogate,
                                          std::uint32_t prompt_tokens);

    Surrogate const& surrogate() const noexcept { return *surrogate_; }

    /// `scores` [kv_heads, tokens - window], as SurrogateArgs says; `attention` likewise, or empty.
    Result<void> score(std::uint32_t layer,
                       RowsView const& keys,
                       RowsView const& values,
                       std::uint32_t window,
                       std::span<float const> attention,
                       std::span<float> scores) const;

private:
    Backend* backend_ = nullptr;
    std::shared_ptr<Surrogate const> surrogate_;
    BackendArray<float> weights_;
    BackendArray<float> turns_;
};

}  // namespace dkv
