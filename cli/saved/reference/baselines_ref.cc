#include "cli/saved/reference/baselines_ref.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "cli/saved/reference/attention_ref.h"
#include "cli/saved/reference/torch_ops.h"

namespace dkv::reference {
namespace {

Result<void> check(ClusterParams const& params) {
    if (params.layers == 0) return invalid("layers is 0");
    if (params.window == 0) return invalid("window is 0");
    if (params.capacity <= params.window)
        return invalid(
            fmt::format("capacity is {}, not above window {}", params.capacity, params.window));
    return {};
}

/// Scores per row, when they make `rows` rows of equal length.
Result<std::size_t> columns_of(std::span<float const> scores, std::uint32_t rows) {
    if (rows == 0 || scores.size() % rows != 0)
        return invalid(
            fmt::format("{} scores are not {} heads of equal length", scores.size(), rows));
    return scores.size() / rows;
}

std::vector<std::int32_t> positions(std::size_t begin, std::size_t count) {
    std::vector<std::int32_t> list(count);
    std::iota(list.begin(), list.end(), static_cast<std::int32_t>(begin));
    return list;
}

Result<void> check_ratio(double ratio) {
    if (ratio >= 0 && ratio < 1) return {};
    return invalid(fmt::format("compression_ratio is {}, not in [0, 1)", ratio));
}

/// int(n * (1 - ratio)), at least 1.
std::size_t kvpress_kept(std::size_t tokens, double compression_ratio) {
    double const kept = std::trunc(static_cast<double>(tokens) * (1 - compression_ratio));
    return std::max<std::size_t>(1, static_cast<std::size_t>(kept));
}

}  // namespace

Result<LayerBudgets> snapkv_ref_budgets(ClusterParams const& params) {
    DKV_TRY(check(params));
    if (params.prompt_tokens < params.capacity) return LayerBudgets{};
    return LayerBudgets(std::in_place, params.layers, params.base());
}

Result<LayerBudgets> pyramidkv_ref_budgets(ClusterParams const& params) {
    DKV_TRY(check(params));
    if (params.beta == 0) return invalid("beta is 0");
    if (params.layers == 1) return invalid("layers is 1, and the published step divides by zero");
    if (params.prompt_tokens < params.capacity) return LayerBudgets{};
    std::uint64_t const base = params.base();
    if (params.prompt_tokens < 2 * base) return snapkv_ref_budgets(params);

    // n >= capacity, so that the prefix holds base: first >= base >= last >= 0.
    std::uint64_t const prefix = params.prompt_tokens - params.window;
    std::uint64_t const first = std::min(2 * base - base / params.beta, prefix);
    std::uint64_t const last = 2 * base - first;
    std::uint64_t const step = (first - last) / (params.layers - 1);
    std::vector<std::uint32_t> budgets(params.layers);
    for (std::uint64_t layer = 0; layer < budgets.size(); ++layer)
        budgets[layer] = static_cast<std::uint32_t>(first - layer * step);
    return LayerBudgets(std::move(budgets));
}

Result<std::vector<std::vector<std::int32_t>>> select_ref(std::span<float const> pooled,
                                                          std::uint32_t heads,
                                                          std::uint32_t budget,
                                                          std::uint32_t window) {
    std::size_t const prefix = DKV_TRY(columns_of(pooled, heads));
    if (budget > prefix)
        return invalid(fmt::format("budget is {} of a prefix of {} tokens", budget, prefix));

    std::vector<std::vector<std::int32_t>> lists;
    for (std::size_t head = 0; head < heads; ++head) {
        auto list = top_positions(pooled.subspan(head * prefix, prefix), budget);
        auto const recent = positions(prefix, window);
        list.insert(list.end(), recent.begin(), recent.end());
        lists.push_back(std::move(list));
    }
    return lists;
}

Result<std::vector<std::vector<std::int32_t>>> select_snapkv_kvpress(std::span<float const> pooled,
                                                                     std::uint32_t kv_heads,
                                                                     std::uint32_t window,
                                                                     double compression_ratio) {
    std::size_t const prefix = DKV_TRY(columns_of(pooled, kv_heads));
    if (prefix == 0) return invalid("the prompt is no longer than the window");
    if (window == 0) return invalid("window is 0");
    DKV_TRY(check_ratio(compression_ratio));

    std::size_t const tokens = prefix + window;
    if (compression_ratio == 0)
        return std::vector<std::vector<std::int32_t>>(kv_heads, positions(0, tokens));
    // torch's max is NaN when one of its scores is.
    auto const nan = std::ranges::find_if(pooled, [](float score) { return std::isnan(score); });
    float const highest = nan != pooled.end() ? *nan : *std::ranges::max_element(pooled);
    std::vector<std::vector<std::int32_t>> lists;
    for (std::size_t head = 0; head < kv_heads; ++head) {
        auto const row = pooled.subspan(head * prefix, prefix);
        std::vector<float> scores(row.begin(), row.end());
        scores.resize(tokens, highest);
        lists.push_back(top_positions(scores, kvpress_kept(tokens, compression_ratio)));
    }
    return lists;
}

Result<std::vector<std::int32_t>> streamingllm_ref(ClusterParams const& params) {
    DKV_TRY(check(params));
    if (params.prompt_tokens < params.capacity) return positions(0, params.prompt_tokens);
    auto list = positions(0, params.base());
    auto const recent = positions(params.prompt_tokens - params.window, params.window);
    list.insert(list.end(), recent.begin(), recent.end());
    return list;
}

Result<std::vector<std::vector<std::int32_t>>> select_h2o_kvpress(std::span<float const> sums,
                                                                  std::uint32_t q_heads,
                                                                  std::uint32_t kv_heads,
                                                                  Dtype dtype,
                                                                  double compression_ratio) {
    std::size_t const tokens = DKV_TRY(columns_of(sums, q_heads));
    if (kv_heads == 0 || q_heads % kv_heads != 0)
        return invalid(fmt::format("q_heads is {}, no multiple of kv_heads {}", q_heads, kv_heads));
    DKV_TRY(check_ratio(compression_ratio));
    if (compression_ratio == 0)
        return std::vector<std::vector<std::int32_t>>(kv_heads, positions(0, tokens));

    std::vector<float> scores(sums.begin(), sums.end());
    for (std::size_t i = 0; i < scores.size(); ++i) {
        auto const queries = static_cast<float>(tokens - i % tokens);
        scores[i] = rounded_to(dtype, scores[i] / rounded_to(dtype, queries));
    }
    auto mean = DKV_TRY(group_mean(scores, kv_heads, q_heads / kv_heads));
    for (float& score : mean)
        score = rounded_to(dtype, score);
    std::vector<std::vector<std::int32_t>> lists;
    for (std::size_t head = 0; head < kv_heads; ++head)
        lists.push_back(top_positions(std::span(mean).subspan(head * tokens, tokens),
                                      kvpress_kept(tokens, compression_ratio)));
    return lists;
}

}  // namespace dkv::reference
