// Params and runs that the pages on policies share.
#pragma once

#include <random>
#include <vector>

#include "sidecar/policy/policy.h"

namespace dkv {

inline PolicyParams params_of(char const* name, std::uint32_t capacity, std::uint32_t window) {
    return resolve({.name = name, .capacity = capacity, .window = window}).value();
}

inline PromptShape shape_of(std::uint32_t layers,
                            std::uint32_t kv_heads,
                            std::uint32_t prompt_tokens,
                            std::uint32_t window) {
    return {
        .layers = layers, .kv_heads = kv_heads, .prompt_tokens = prompt_tokens, .window = window};
}

/// 0 … limit-1
inline std::uint32_t below(std::mt19937& random, std::uint32_t limit) {
    return static_cast<std::uint32_t>(random() % limit);
}

/// The budget of head 0 in each layer.
inline std::vector<std::uint32_t> layer_budgets(Policy const& policy) {
    std::vector<std::uint32_t> budgets;
    for (std::uint32_t layer = 0; layer < policy.budgets().layers(); ++layer)
        budgets.push_back(policy.budgets().layer(layer).front());
    return budgets;
}

}  // namespace dkv
