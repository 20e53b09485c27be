// What a job should come to, worked out the long way: softmax in double over every row, full sorts.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "tests/sidecar/pipeline/fake_prompt.h"

namespace dkv {

using Row = std::vector<double>;

struct ExpectedLayer {
    std::vector<Row>
        attention;            ///< [q_heads][prompt] mean over the window; h2o: Σ over all queries.
    std::vector<Row> pooled;  ///< [kv_heads][prefix]
    std::vector<Row> mass;    ///< [kv_heads][prefix]
    std::vector<std::vector<std::int32_t>> ranks;  ///< [kv_heads][prefix] the whole order.
};

struct Expected {
    std::vector<ExpectedLayer> layers;
    std::vector<std::vector<std::uint32_t>> budgets;  ///< [layers][kv_heads]

    /// Position-sorted, window last.
    std::vector<std::int32_t> kept(JobSpec const& spec, std::uint32_t l, std::uint32_t head) const {
        auto ids = layers[l].ranks[head];
        ids.resize(budgets[l][head]);
        for (std::uint32_t t = spec.prompt_tokens - spec.params.window; t < spec.prompt_tokens; ++t)
            ids.push_back(static_cast<std::int32_t>(t));
        std::ranges::sort(ids);
        return ids;
    }

    double mass_kept(JobSpec const& spec, std::uint32_t l) const {
        double sum = 0;
        for (std::uint32_t head = 0; head < spec.geometry.kv_heads; ++head) {
            Row const& mass = layers[l].mass[head];
            sum += 1 - std::accumulate(mass.begin(), mass.end(), 0.0);
            for (std::uint32_t i = 0; i < budgets[l][head]; ++i)
                sum += mass[static_cast<std::size_t>(layers[l].ranks[head][i])];
        }
        return sum / spec.geometry.kv_heads;
    }
};

/// Σ over the last `count` queries of softmax(q·k / sqrt(d)), causal; over the head's sink, too.
inline Row attention_of(JobSpec const& spec,
                        FakeLayer const& layer,
                        std::uint32_t query_head,
                        std::uint32_t count) {
    std::uint32_t const tokens = spec.prompt_tokens;
    std::uint32_t const before = layer.queries.shape.tokens - count;
    std::uint32_t const kv_head = query_head / spec.geometry.group();
    Row total(tokens, 0.0);
    for (std::uint32_t q = 0; q < count; ++q) {
        std::uint32_t const visible = tokens - count + q + 1;
        Row row(visible);
        for (std::uint32_t t = 0; t < visible; ++t) {
            double dot = 0;
            for (std::uint32_t d = 0; d < spec.geometry.head_dim; ++d)
                dot += layer.queries.at(query_head, before + q, d) * layer.keys.at(kv_head, t, d);
            row[t] = std::exp(dot / std::sqrt(double{1} * spec.geometry.head_dim));
        }
        double const sink = layer.sinks.empty() ? 0 : std::exp(double{layer.sinks[query_head]});
        double const sum = std::accumulate(row.begin(), row.end(), sink);
        for (std::uint32_t t = 0; t < visible; ++t)
            total[t] += row[t] / sum;
    }
    return total;
}

/// What a policy without queries ranks a head's tokens by.
inline Row key_scores_of(JobSpec const& spec,
                         FakeLayer const& layer,
                         std::uint32_t head,
                         Ranking ranking) {
    std::uint32_t const dims = spec.geometry.head_dim;
    Row norms(spec.prompt_tokens, 0.0);
    Row mean(dims, 0.0);
    for (std::uint32_t t = 0; t < spec.prompt_tokens; ++t) {
        for (std::uint32_t d = 0; d < dims; ++d)
            norms[t] += std::pow(layer.keys.at(head, t, d), 2);
        norms[t] = std::sqrt(norms[t]);
        for (std::uint32_t d = 0; d < dims; ++d)
            mean[d] += layer.keys.at(head, t, d) / norms[t];
    }
    Row scores;
    for (std::uint32_t t = 0; t < spec.prompt_tokens - spec.params.window; ++t) {
        double dot = 0;
        for (std::uint32_t d = 0; d < dims; ++d)
            dot += layer.keys.at(head, t, d) * mean[d];
        // Rounded: equal norms are ties.
        scores.push_back(ranking == Ranking::KeyNorm
                             ? static_cast<double>(static_cast<float>(-norms[t]))
                             : -dot / norms[t]);
    }
    return scores;
}

inline Row pooled_of(Row const& scores, PolicyParams const& params) {
    auto const reach = static_cast<std::ptrdiff_t>(params.kernel / 2);
    auto const count = static_cast<std::ptrdiff_t>(scores.size());
    Row pooled;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        auto const from = scores.begin() + std::max<std::ptrdiff_t>(0, i - reach);
        auto const to = scores.begin() + std::min(count, i + reach + 1);
        pooled.push_back(params.pool == Pool::Max ? *std::max_element(from, to)
                                                  : std::accumulate(from, to, 0.0) / params.kernel);
    }
    return pooled;
}

inline ExpectedLayer expected_layer(JobSpec const& spec,
                                    FakeLayer const& layer,
                                    Policy const& policy) {
    std::uint32_t const prefix = spec.prompt_tokens - spec.params.window;
    std::uint32_t const group = spec.geometry.group();
    ExpectedLayer expected;
    for (std::uint32_t head = 0; head < spec.geometry.kv_heads; ++head) {
        Row sum(prefix, 0.0);
        Row max(prefix, 0.0);
        Row window(prefix, 0.0);  // What the mass is of, whatever the ranking.
        bool const by_all = policy.ranking() == Ranking::Accumulated;
        for (std::uint32_t i = 0; i < group; ++i) {
            Row const by_window = attention_of(spec, layer, head * group + i, spec.params.window);
            Row& row = expected.attention.emplace_back(by_window);
            for (double& share : row)
                share /= spec.params.window;
            for (std::uint32_t t = 0; t < prefix; ++t)
                window[t] += row[t] / group;
            if (by_all) row = attention_of(spec, layer, head * group + i, spec.prompt_tokens);
            for (std::uint32_t t = 0; t < prefix; ++t) {
                if (by_all && spec.params.query_norm) row[t] /= spec.prompt_tokens - t;
                sum[t] += row[t];
                max[t] = std::max(max[t], row[t]);
            }
        }
        Row mean = sum;
        for (double& score : mean)
            score /= group;
        Row const& scores = spec.params.reduce == GroupReduce::Max   ? max
                            : spec.params.reduce == GroupReduce::Sum ? sum
                                                                     : mean;
        bool const by_keys =
            policy.ranking() == Ranking::KeyNorm || policy.ranking() == Ranking::KeyDifference;
        expected.pooled.push_back(by_all    ? scores
                                  : by_keys ? key_scores_of(spec, layer, head, policy.ranking())
                                            : pooled_of(scores, spec.params));
        expected.mass.push_back(window);

        std::vector<std::int32_t> ranks(prefix);
        std::iota(ranks.begin(), ranks.end(), 0);
        auto const& by = expected.pooled.back();
        std::ranges::stable_sort(ranks, std::greater<>(),
                                 [&](std::int32_t id) { return by[static_cast<std::size_t>(id)]; });
        if (policy.ranking() == Ranking::Positions) ranks = policy.ranked_positions();
        expected.ranks.push_back(ranks);
    }
    return expected;
}

/// How many of the `total` largest scores each layer and head has.
inline std::vector<std::uint64_t> tally_of(std::vector<ExpectedLayer> const& layers,
                                           std::uint64_t total) {
    std::vector<std::tuple<double, std::size_t>> scores;  // Negative, so that sorting is ranking.
    std::size_t rows = 0;
    for (ExpectedLayer const& layer : layers)
        for (Row const& row : layer.pooled) {
            for (double const score : row)
                scores.emplace_back(-score, rows);
            ++rows;
        }
    std::ranges::stable_sort(scores);
    std::vector<std::uint64_t> counts(rows, 0);
    for (std::size_t i = 0; i < std::min<std::size_t>(total, scores.size()); ++i)
        ++counts[std::get<1>(scores[i])];
    return counts;
}

inline Expected expected_of(JobSpec const& spec, std::vector<FakeLayer> const& prompt) {
    auto const policy = make_policy(spec.params, {spec.geometry.layers, spec.geometry.kv_heads,
                                                  spec.prompt_tokens, spec.params.window});
    Expected expected;
    for (std::uint32_t l = 0; l < spec.geometry.layers; ++l) {
        expected.layers.push_back(expected_layer(spec, prompt[l], *policy));
        if (auto const total = policy->tally_total(l))
            policy->rebalance(l + 1, tally_of(expected.layers, *total));
    }
    for (std::uint32_t l = 0; l < spec.geometry.layers; ++l) {
        auto const budgets = policy->budgets().layer(l);
        expected.budgets.emplace_back(budgets.begin(), budgets.end());
    }
    return expected;
}

}  // namespace dkv
