#include "cli/saved/reference/torch_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#ifndef __GLIBCXX__
#error "torch's order of equal scores is libstdc++'s: build with that library"
#endif

namespace dkv::reference {
namespace {

// torch sorts partially where the top is this much smaller than the whole.
constexpr std::size_t kPartialSortFactor = 64;

bool ranks_before(Ranked const& a, Ranked const& b) {
    return (std::isnan(a.score) && !std::isnan(b.score)) || a.score > b.score;
}

float average(std::span<float const> inside, std::uint32_t kernel) {
    float sum = 0;
    for (float const score : inside)
        sum += score;
    return sum / static_cast<float>(kernel);
}

float largest(std::span<float const> inside) {
    float best = -std::numeric_limits<float>::infinity();
    for (float const score : inside)
        if (score > best || std::isnan(score)) best = score;
    return best;
}

}  // namespace

void rank_top(std::span<Ranked> entries, std::size_t count) {
    DKV_ASSERT(count <= entries.size());
    if (count == 0) return;

    auto const first = entries.begin();
    auto const end = first + static_cast<std::ptrdiff_t>(count);
    if (count * kPartialSortFactor <= entries.size()) {
        std::partial_sort(first, end, entries.end(), ranks_before);
        return;
    }
    std::nth_element(first, end - 1, entries.end(), ranks_before);
    std::sort(first, end - 1, ranks_before);
}

std::vector<std::int32_t> top_positions(std::span<float const> scores, std::size_t count) {
    std::vector<Ranked> entries(scores.size());
    for (std::uint32_t position = 0; position < entries.size(); ++position)
        entries[position] = {scores[position], position};
    rank_top(entries, count);

    std::vector<std::int32_t> positions(count);
    std::transform(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(count),
                   positions.begin(),
                   [](Ranked const& entry) { return static_cast<std::int32_t>(entry.tag); });
    return positions;
}

Result<std::vector<float>> pool1d(std::span<float const> scores,
                                  std::uint32_t rows,
                                  Pool pool,
                                  std::uint32_t kernel) {
    if (kernel == 0) return Error{ErrorCode::InvalidArgument, "kernel is 0"};
    if (rows == 0 || scores.size() % rows != 0)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} scores are not {} rows of equal length", scores.size(), rows)};

    std::size_t const tokens = scores.size() / rows;
    std::size_t const columns = pooled_columns(tokens, kernel);
    std::size_t const padding = kernel / 2;
    std::vector<float> pooled(rows * columns);
    for (std::size_t row = 0; row < rows; ++row) {
        auto const source = scores.subspan(row * tokens, tokens);
        for (std::size_t column = 0; column < columns; ++column) {
            std::size_t const begin = column > padding ? column - padding : 0;
            std::size_t const end = std::min(tokens, column + kernel - padding);
            auto const inside = source.subspan(begin, end - begin);
            pooled[row * columns + column] =
                pool == Pool::Avg ? average(inside, kernel) : largest(inside);
        }
    }
    return pooled;
}

Result<std::vector<float>> group_mean(std::span<float const> scores,
                                      std::uint32_t groups,
                                      std::uint32_t group) {
    std::size_t const rows = std::size_t{groups} * group;
    if (rows == 0 || scores.size() % rows != 0)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} scores are not {} groups of {} rows of equal length",
                                 scores.size(), groups, group)};

    std::size_t const columns = scores.size() / rows;
    std::vector<float> means(groups * columns, 0.0f);
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < columns; ++column)
            means[row / group * columns + column] += scores[row * columns + column];
    for (float& mean : means)
        mean /= static_cast<float>(group);
    return means;
}

double float_floor_divide(double dividend, double divisor) {
    DKV_ASSERT(dividend >= 0 && divisor > 0);
    double const whole = (dividend - std::fmod(dividend, divisor)) / divisor;
    double const floored = std::floor(whole);
    return whole - floored > 0.5 ? floored + 1.0 : floored;
}

}  // namespace dkv::reference
