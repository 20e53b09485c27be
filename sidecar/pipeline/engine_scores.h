// Scores that an engine has computed itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/geometry.h"
#include "protocol/base/score_options.h"

namespace dkv {

struct PrefixScores {
    std::vector<float> scores;  ///< [kv_heads, prefix]
    std::vector<float> mass;    ///< [kv_heads, prefix] as ops/score defines it; empty: unknown.
};

/// `rows` [q_heads or kv_heads, prompt_tokens] over the whole prompt, window included.
///
/// The scale of an engine's scores is unknown. Where every row is free of negative numbers and
/// adds up to 1, they are taken to be attention, and their mass is known.
PrefixScores prefix_scores(std::span<float const> rows,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens,
                           std::uint32_t prefix,
                           GroupReduce reduce);

}  // namespace dkv
