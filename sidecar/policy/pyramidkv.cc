// PyramidKV (Cai et al. 2024): early layers attend broadly and get more, late ones less.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sidecar/policy/allocate.h"
#include "sidecar/policy/factories.h"
#include "sidecar/policy/known_budgets.h"

namespace dkv {
namespace {

/// An arithmetic progression from `first` down to 2 * base - first. The published code takes an
/// integer step and spends up to 11.7 % more than its budget; here the fractions go by largest
/// remainder, so the layers add up to base * layers and never rise.
std::vector<std::uint32_t> pyramid(PolicyParams const& params, PromptShape const& shape) {
    std::uint64_t const base = params.base();
    if (shape.layers == 1) return {params.base()};

    auto const wanted_last = static_cast<std::uint64_t>(static_cast<double>(base) / params.beta);
    std::uint64_t const first = std::min<std::uint64_t>(2 * base - wanted_last, shape.prefix());
    std::uint64_t const last = 2 * base - first;

    std::uint64_t const steps = shape.layers - 1;
    std::vector<std::uint64_t> weights(shape.layers);
    for (std::uint64_t layer = 0; layer <= steps; ++layer)
        weights[layer] = first * (steps - layer) + last * layer;
    std::vector<std::uint32_t> const lower(shape.layers, 0);
    std::vector<std::uint32_t> const upper(shape.layers, shape.prefix());
    return allocate(base * shape.layers, weights, lower, upper);
}

}  // namespace

std::unique_ptr<Policy> make_pyramidkv(PolicyParams const& params, PromptShape const& shape) {
    auto const layer_budgets = pyramid(params, shape);
    HeadBudgets budgets(shape.layers, shape.kv_heads, 0);
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
        std::ranges::fill(budgets.layer(layer), layer_budgets[layer]);
    return std::make_unique<KnownBudgets>(std::move(budgets));
}

}  // namespace dkv
