#include "sidecar/pipeline/engine_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

constexpr double kSumTolerance = 1e-3;  // A row of attention summed up in f16 is that far off.

bool looks_like_attention(std::span<float const> row) {
    double sum = 0;
    for (float const score : row) {
        if (!(score >= 0)) return false;
        sum += score;
    }
    return std::abs(sum - 1) <= kSumTolerance;
}

/// NaN when any is NaN: select and tally then rank the token last.
float reduced(std::span<float const> rows,
              std::size_t row_tokens,
              std::size_t group,
              GroupReduce reduce) {
    double sum = 0;
    double max = -std::numeric_limits<double>::infinity();
    for (std::size_t query = 0; query < group; ++query) {
        double const score = rows[query * row_tokens];
        sum += score;
        max = std::max(max, score);
    }
    if (std::isnan(sum)) return std::numeric_limits<float>::quiet_NaN();
    switch (reduce) {
        case GroupReduce::Max: return static_cast<float>(max);
        case GroupReduce::Sum: return static_cast<float>(sum);
        default: return static_cast<float>(sum / static_cast<double>(group));
    }
}

}  // namespace

PrefixScores prefix_scores(std::span<float const> rows,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens,
                           std::uint32_t prefix,
                           GroupReduce reduce) {
    std::size_t const tokens = prompt_tokens;
    std::size_t const row_count = rows.size() / tokens;
    std::size_t const group = row_count / geometry.kv_heads;
    DKV_ASSERT(rows.size() == group * geometry.kv_heads * tokens && group > 0 && prefix <= tokens);

    bool attention = true;
    for (std::size_t row = 0; attention && row < row_count; ++row)
        attention = looks_like_attention(rows.subspan(row * tokens, tokens));

    PrefixScores result;
    result.scores.reserve(std::size_t{geometry.kv_heads} * prefix);
    for (std::size_t head = 0; head < geometry.kv_heads; ++head)
        for (std::size_t token = 0; token < prefix; ++token) {
            auto const column = rows.subspan(head * group * tokens + token);
            result.scores.push_back(reduced(column, tokens, group, reduce));
            if (attention) result.mass.push_back(reduced(column, tokens, group, GroupReduce::Mean));
        }
    return result;
}

}  // namespace dkv
