// The ops as their contracts define them, in doubles and without a thought for speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/rows.h"

namespace dkv::test {

/// The relative error that an op may have: what f32 accumulators and a device's exp give, however
/// the inputs are stored.
inline double tolerance(Dtype dtype) {
    switch (dtype) {
        case Dtype::F32: return 2e-5;
        case Dtype::F16: return 2e-5;
        case Dtype::Bf16: return 2e-5;
    }
    return 0;
}

/// The largest error in units of the tolerance; infinite when a number is missing or not finite.
inline double worst_error(std::span<float const> got,
                          std::span<double const> want,
                          double relative) {
    if (got.size() != want.size()) return HUGE_VAL;
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        double const error = std::abs(got[i] - want[i]) / (relative * std::abs(want[i]) + 1e-9);
        if (!(error <= worst)) worst = std::isnan(error) ? HUGE_VAL : error;
    }
    return worst;
}

struct Scores {
    std::vector<double> scores;
    std::vector<double> mass;
    std::vector<double> peaks;
    std::vector<double> window_share;  ///< [kv_heads]: what the mass leaves to the window.
    std::vector<double> sink_share;    ///< [kv_heads]: and to the sinks.
};

inline Scores reference_score(Rows const& queries,
                              Rows const& keys,
                              GroupReduce reduce,
                              double scale = 0,
                              double softcap = 0,
                              std::span<float const> sinks = {}) {
    auto const q_heads = queries.view.heads;
    auto const kv_heads = keys.view.heads;
    auto const window = queries.view.tokens;
    auto const tokens = keys.view.tokens;
    auto const prefix = tokens - window;
    auto const group = q_heads / kv_heads;
    if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(keys.view.head_dim));

    bool const per_query_head = reduce == GroupReduce::None;
    Scores out;
    out.scores.assign(std::size_t{per_query_head ? q_heads : kv_heads} * prefix, 0);
    out.mass.assign(std::size_t{kv_heads} * prefix, 0);
    out.peaks.assign(std::size_t{kv_heads} * prefix, 0);
    out.window_share.assign(kv_heads, 0);
    out.sink_share.assign(kv_heads, 0);
    for (std::uint32_t q_head = 0; q_head < q_heads; ++q_head) {
        auto const head = q_head / group;
        std::vector<double> mean(tokens, 0);
        for (std::uint32_t w = 0; w < window; ++w) {
            auto const seen = prefix + w + 1;
            std::vector<double> logits(seen);
            for (std::uint32_t t = 0; t < seen; ++t) {
                double dot = 0;
                for (std::uint32_t d = 0; d < keys.view.head_dim; ++d)
                    dot += double{queries.get(q_head, w, d)} * double{keys.get(head, t, d)};
                logits[t] = softcap == 0 ? dot * scale : softcap * std::tanh(dot * scale / softcap);
            }
            double const largest = *std::max_element(logits.begin(), logits.end());
            double sum = 0;
            for (double const logit : logits)
                sum += std::exp(logit - largest);
            double const sink = sinks.empty() ? 0 : std::exp(double{sinks[q_head]} - largest);
            sum += sink;
            out.sink_share[head] += sink / sum / window / group;
            for (std::uint32_t t = 0; t < seen; ++t)
                mean[t] += std::exp(logits[t] - largest) / sum / window;
            for (std::uint32_t t = 0; t < prefix; ++t) {
                double& peak = out.peaks[std::size_t{head} * prefix + t];
                peak = std::max(peak, std::exp(logits[t] - largest) / sum);
            }
        }
        for (std::uint32_t t = 0; t < prefix; ++t) {
            out.mass[std::size_t{head} * prefix + t] += mean[t] / group;
            double& score = out.scores[std::size_t{per_query_head ? q_head : head} * prefix + t];
            switch (reduce) {
                case GroupReduce::Mean: score += mean[t] / group; break;
                case GroupReduce::Max: score = std::max(score, mean[t]); break;
                case GroupReduce::Sum:
                case GroupReduce::None: score += mean[t]; break;
            }
        }
        out.window_share[head] += std::accumulate(mean.begin() + prefix, mean.end(), 0.0) / group;
    }
    return out;
}

/// One query at a time, over the tokens that it sees.
inline std::vector<double> reference_accumulate(Rows const& queries,
                                                Rows const& keys,
                                                AccumulateArgs const& args) {
    auto const q_heads = queries.view.heads;
    auto const tokens = keys.view.tokens;
    auto const group = q_heads / keys.view.heads;
    auto const columns = tokens - args.window;
    double const scale = args.scale != 0 ? double{args.scale}
                                         : 1 / std::sqrt(static_cast<double>(keys.view.head_dim));
    bool const per_query_head = args.reduce == GroupReduce::None;
    std::vector<double> out(std::size_t{per_query_head ? q_heads : keys.view.heads} * columns, 0);
    for (std::uint32_t q_head = 0; q_head < q_heads; ++q_head) {
        std::vector<double> sums(tokens, 0);
        for (std::uint32_t t = 0; t < tokens; ++t) {
            std::vector<double> logits(t + 1);
            for (std::uint32_t i = 0; i <= t; ++i) {
                double dot = 0;
                for (std::uint32_t d = 0; d < keys.view.head_dim; ++d)
                    dot +=
                        double{queries.get(q_head, t, d)} * double{keys.get(q_head / group, i, d)};
                logits[i] = args.softcap == 0
                                ? dot * scale
                                : args.softcap * std::tanh(dot * scale / double{args.softcap});
            }
            double const largest = *std::max_element(logits.begin(), logits.end());
            double total =
                args.sink_logits.empty() ? 0 : std::exp(double{args.sink_logits[q_head]} - largest);
            for (double& logit : logits)
                total += logit = std::exp(logit - largest);
            for (std::uint32_t i = 0; i <= t; ++i)
                sums[i] += logits[i] / total / (args.per_query ? tokens - i : 1);
        }
        for (std::uint32_t t = 0; t < columns; ++t) {
            double& score =
                out[std::size_t{per_query_head ? q_head : q_head / group} * columns + t];
            switch (args.reduce) {
                case GroupReduce::Mean: score += sums[t] / group; break;
                case GroupReduce::Max: score = std::max(score, sums[t]); break;
                case GroupReduce::Sum:
                case GroupReduce::None: score += sums[t]; break;
            }
        }
    }
    return out;
}

inline std::vector<double> reference_key_score(Rows const& keys, KeyScoreArgs const& args) {
    auto const tokens = keys.view.tokens;
    auto const dims = keys.view.head_dim;
    std::vector<double> out;
    for (std::uint32_t head = 0; head < keys.view.heads; ++head) {
        std::vector<double> norms(tokens, 0);
        std::vector<double> mean(dims, 0);
        for (std::uint32_t token = 0; token < tokens; ++token) {
            for (std::uint32_t d = 0; d < dims; ++d)
                norms[token] += std::pow(double{keys.get(head, token, d)}, 2);
            norms[token] = std::sqrt(norms[token]);
            for (std::uint32_t d = 0; norms[token] > 0 && d < dims; ++d)
                mean[d] += double{keys.get(head, token, d)} / norms[token];
        }
        double const length =
            std::sqrt(std::inner_product(mean.begin(), mean.end(), mean.begin(), 0.0));
        for (std::uint32_t token = 0; token < tokens - args.window; ++token) {
            double dot = 0;
            for (std::uint32_t d = 0; d < dims; ++d)
                dot += double{keys.get(head, token, d)} * mean[d];
            bool const zero = norms[token] == 0 || length == 0;
            out.push_back(args.measure == KeyMeasure::Norm ? -norms[token]
                          : zero                           ? 0
                                                           : -dot / norms[token] / length);
        }
    }
    return out;
}

inline std::vector<double> reference_surrogate(Rows const& keys,
                                               Rows const& values,
                                               SurrogateArgs const& args,
                                               std::vector<float> const& frequencies) {
    auto const heads = keys.view.heads;
    auto const dims = keys.view.head_dim;
    std::size_t const features = args.weights.size() / heads;
    std::vector<double> out;
    for (std::uint32_t head = 0; head < heads; ++head)
        for (std::uint32_t token = 0; token < keys.view.tokens - args.window; ++token) {
            std::vector<double> known;
            std::vector<double> logs;
            for (auto const* const rows : {&keys, &values})
                for (std::uint32_t of = 0; of < heads; ++of) {
                    std::vector<double> row;
                    double squares = 0;
                    for (std::uint32_t dim = 0; dim < dims; ++dim) {
                        row.push_back(double{rows->get(of, token, dim)});
                        squares += row.back() * row.back();
                    }
                    logs.push_back(std::log(std::max(squares, 0x1p-40)) / 2);
                    for (std::size_t i = 0; rows == &keys && i < frequencies.size(); ++i) {
                        double const angle = token * double{frequencies[i]};
                        double& a = row[args.interleaved ? 2 * i : i];
                        double& b = row[args.interleaved ? 2 * i + 1 : frequencies.size() + i];
                        double const turned = a * std::cos(angle) + b * std::sin(angle);
                        b = b * std::cos(angle) - a * std::sin(angle);
                        a = turned;
                    }
                    known.insert(known.end(), row.begin(), row.end());
                }
            known.insert(known.end(), logs.begin(), logs.end());
            known.push_back(1);
            out.push_back(std::inner_product(
                known.begin(), known.end(),
                args.weights.begin() + static_cast<std::ptrdiff_t>(head * features), 0.0));
            if (args.attention.empty()) continue;
            double const seen = args.attention[out.size() - 1];
            out.back() = std::max(out.back(), std::log(std::max(seen, 0x1p-20)));
        }
    return out;
}

inline std::vector<double> reference_pool(PoolArgs const& args) {
    std::vector<double> out(args.scores.size());
    auto const half = static_cast<std::int64_t>(args.kernel / 2);
    for (std::uint32_t head = 0; head < args.heads; ++head) {
        auto const row = args.scores.subspan(std::size_t{head} * args.tokens, args.tokens);
        for (std::int64_t t = 0; t < args.tokens; ++t) {
            double most = -HUGE_VAL;
            double sum = 0;
            for (auto i = std::max<std::int64_t>(t - half, 0);
                 i <= std::min<std::int64_t>(t + half, args.tokens - 1); ++i) {
                double const score = row[static_cast<std::size_t>(i)];
                most = score > most || std::isnan(score) ? score : most;
                sum += score;
            }
            out[std::size_t{head} * args.tokens + static_cast<std::size_t>(t)] =
                args.pool == Pool::Max ? most : sum / args.kernel;
        }
    }
    return out;
}

/// Better first: the larger score, NaN last; then the earlier place.
inline bool better(float a, std::size_t a_place, float b, std::size_t b_place) {
    if (std::isnan(a) != std::isnan(b)) return std::isnan(b);
    if (!std::isnan(a) && a != b) return a > b;
    return a_place < b_place;
}

/// The places of `scores`, best first.
inline std::vector<std::size_t> ranked(std::span<float const> scores) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return better(scores[a], a, scores[b], b); });
    return order;
}

inline std::vector<std::int32_t> reference_select(std::span<float const> scores,
                                                  std::span<std::uint32_t const> keep,
                                                  std::uint32_t tokens) {
    std::vector<std::int32_t> ids;
    for (std::size_t head = 0; head < keep.size(); ++head) {
        auto const order = ranked(scores.subspan(head * tokens, tokens));
        for (std::uint32_t i = 0; i < keep[head]; ++i)
            ids.push_back(static_cast<std::int32_t>(order[i]));
    }
    return ids;
}

inline std::vector<std::uint64_t> reference_tally(std::span<std::vector<float> const> layers,
                                                  std::uint32_t heads,
                                                  std::uint32_t tokens,
                                                  std::uint64_t total,
                                                  std::span<float const> scales = {},
                                                  std::uint32_t skip = 0) {
    std::vector<float> all;
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
        for (std::size_t i = 0; i < layers[layer].size(); ++i) {
            float const scale = scales.empty() ? 1.0F : scales[layer];
            all.push_back(i % tokens < skip ? 0.0F : layers[layer][i] * scale);
        }
    auto const order = ranked(all);
    std::vector<std::uint64_t> counts(layers.size() * heads, 0);
    for (std::size_t i = 0; i < std::min<std::uint64_t>(total, order.size()); ++i)
        ++counts[order[i] / tokens];
    return counts;
}

}  // namespace dkv::test
