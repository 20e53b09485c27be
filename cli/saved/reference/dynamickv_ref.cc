#include "cli/saved/reference/dynamickv_ref.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "cli/saved/reference/torch_ops.h"

namespace dkv::reference {
namespace {

/// Where list[0:end] ends in Python, for a list of `size`.
std::size_t slice_end(std::int64_t end, std::size_t size) {
    auto const length = static_cast<std::int64_t>(size);
    return static_cast<std::size_t>(end < 0 ? std::max<std::int64_t>(0, length + end)
                                            : std::min(end, length));
}

}  // namespace

Result<DynamicKvRef> DynamicKvRef::create(DynamicKvRefParams const& params) {
    auto const refuse = [](std::string_view name, auto const& value) {
        return Error{ErrorCode::InvalidArgument, fmt::format("{} is {}", name, value)};
    };
    if (params.layers == 0) return refuse("layers", params.layers);
    if (params.heads == 0) return refuse("heads", params.heads);
    if (params.window == 0) return refuse("window", params.window);
    if (params.update_interval == 0) return refuse("update_interval", params.update_interval);
    if (params.prompt_tokens > std::uint32_t{std::numeric_limits<std::int32_t>::max()})
        return refuse("prompt_tokens", params.prompt_tokens);
    if (!std::isfinite(params.r_max) || params.r_max < 0) return refuse("r_max", params.r_max);
    return DynamicKvRef(params);
}

DynamicKvRef::DynamicKvRef(DynamicKvRefParams const& params) : params_(params) {
    double const wanted = std::trunc(params.r_max * params.base);
    stage_limit_ = static_cast<std::uint32_t>(std::min<double>(wanted, params.prefix()));
}

Result<void> DynamicKvRef::add_layer(std::span<float const> pooled) {
    if (failed_) return Error{ErrorCode::BadState, "an earlier layer failed"};
    if (stored_.size() == params_.layers)
        return Error{ErrorCode::BadState, fmt::format("all {} layers are there", params_.layers)};

    std::size_t const columns = pooled.size() / params_.heads;
    bool const fits = columns == params_.prefix() ||
                      (params_.prefix() > 0 && columns == std::size_t{params_.prefix()} + 1);
    if (columns * params_.heads != pooled.size() || !fits ||
        (!scores_.empty() && columns != columns_))
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} scores for {} heads and a prefix of {} tokens", pooled.size(),
                                 params_.heads, params_.prefix())};

    stored_.push_back(DKV_TRY(stage(pooled, columns)));
    columns_ = columns;
    scores_.emplace_back(pooled.begin(), pooled.end());
    if (params_.keeps_all() || stored_.size() % params_.update_interval != 0) return {};
    return update();
}

Result<std::vector<StoredList>> DynamicKvRef::stage(std::span<float const> pooled,
                                                    std::size_t columns) {
    std::vector<StoredList> lists(params_.heads);
    for (std::size_t head = 0; head < lists.size(); ++head) {
        auto& list = lists[head];
        list = top_positions(pooled.subspan(head * columns, columns), stage_limit_);
        // An even kernel's last column is not a token; the release meets it when it copies the
        // keys.
        if (std::ranges::find(list, static_cast<std::int32_t>(params_.prefix())) != list.end())
            return raise("RuntimeError", fmt::format("index {} is out of bounds for {} keys",
                                                     params_.prefix(), params_.prefix()));
        std::uint32_t const window = std::min(params_.window, params_.prompt_tokens);
        auto const kept = list.size();
        list.resize(kept + window);
        std::iota(list.begin() + static_cast<std::ptrdiff_t>(kept), list.end(),
                  static_cast<std::int32_t>(params_.prefix()));
    }
    return lists;
}

/// How many of the `total` largest scores of all layers seen fall in each layer.
std::vector<std::int64_t> DynamicKvRef::count_top(std::uint64_t total) const {
    std::vector<Ranked> entries;
    entries.reserve(scores_.size() * scores_.front().size());
    for (std::uint32_t layer = 0; layer < scores_.size(); ++layer)
        for (float const score : scores_[layer])
            entries.push_back({score, layer});

    auto const count = static_cast<std::size_t>(std::min<std::uint64_t>(total, entries.size()));
    rank_top(entries, count);
    std::vector<std::int64_t> counts(scores_.size(), 0);
    for (Ranked const& entry : std::span(entries).first(count))
        ++counts[entry.tag];
    return counts;
}

Result<void> DynamicKvRef::update() {
    auto const layers_seen = static_cast<std::int64_t>(stored_.size());
    bool const last = stored_.size() == params_.layers;
    // Not clipped to the number of scores, though no more can be counted: the correction of the
    // last layer below uses the unclipped number.
    std::uint64_t const total = std::uint64_t{params_.base} * params_.heads * stored_.size();
    if (last && total == 0)
        return raise("IndexError", "base is 0, and the release prints the first of the top 0");

    auto counts = count_top(total);
    for (auto& count : counts)
        count /= layers_seen;
    auto const sum = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    if (last && static_cast<std::size_t>(sum) != params_.heads * columns_)
        counts.back() += static_cast<std::int64_t>(total / params_.layers) - sum;

    auto budgets = DKV_TRY(budgets_of(counts));
    cut(budgets);
    budgets_per_update_.push_back(std::move(budgets));
    return {};
}

Result<std::vector<std::int64_t>> DynamicKvRef::budgets_of(std::span<std::int64_t const> counts) {
    auto const counted = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    if (counted == 0)
        return raise("ValueError",
                     fmt::format("no layer holds {} of the largest scores, so that every share is "
                                 "0 / 0",
                                 counts.size()));

    std::vector<std::int64_t> budgets;
    for (std::int64_t const count : counts) {
        float const share = static_cast<float>(count) / static_cast<float>(counted);
        budgets.push_back(static_cast<std::int64_t>(static_cast<float>(stage_limit_) * share));
    }

    auto const wanted = std::int64_t{params_.base} * params_.layers;
    auto const given = std::accumulate(budgets.begin(), budgets.end(), std::int64_t{0});
    double const ratio = static_cast<double>(given) / static_cast<double>(wanted);
    if (ratio == 0)
        return raise("ZeroDivisionError",
                     fmt::format("every layer's share of {} tokens is below 1, so that the budgets "
                                 "are divided by zero",
                                 stage_limit_));
    for (auto& budget : budgets)
        budget = static_cast<std::int64_t>(float_floor_divide(static_cast<double>(budget), ratio));
    budgets.back() += wanted - std::accumulate(budgets.begin(), budgets.end(), std::int64_t{0});
    return budgets;
}

/// list = list[0:budget] + list[-window:]: a budget beyond the stored prefix takes window tokens a
/// second time.
void DynamicKvRef::cut(std::span<std::int64_t const> budgets) {
    for (std::size_t layer = 0; layer < stored_.size(); ++layer) {
        auto const budget = std::min(budgets[layer], static_cast<std::int64_t>(columns_));
        for (auto& list : stored_[layer]) {
            StoredList const window(list.end() - params_.window, list.end());
            list.resize(slice_end(budget, list.size()));
            list.insert(list.end(), window.begin(), window.end());
        }
    }
}

std::uint64_t DynamicKvRef::duplicate_entries() const {
    std::uint64_t duplicates = 0;
    for (auto const& layer : stored_) {
        for (auto sorted : layer) {
            std::ranges::sort(sorted);
            duplicates += static_cast<std::uint64_t>(sorted.end() -
                                                     std::unique(sorted.begin(), sorted.end()));
        }
    }
    return duplicates;
}

Error DynamicKvRef::raise(std::string_view exception, std::string_view why) {
    failed_ = true;
    raised_ = exception;
    return Error{ErrorCode::InvalidArgument,
                 fmt::format("{} (the release raises {})", why, exception)};
}

}  // namespace dkv::reference
