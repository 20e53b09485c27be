#include "cli/saved/reference/attention_ref.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include "protocol/base/sink_logits.h"

namespace dkv::reference {
namespace {

/// Added in eight lanes, so that a compiler can keep them in a vector.
float dot(float const* a, float const* b, std::size_t count) {
    constexpr std::size_t kLanes = 8;
    std::array<float, kLanes> lanes{};
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane)
            lanes[lane] += a[i + lane] * b[i + lane];
    float sum = 0;
    for (; i < count; ++i)
        sum += a[i] * b[i];
    for (float const lane : lanes)
        sum += lane;
    return sum;
}

float rounded_to_bf16(float value) noexcept {
    auto const bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return value;
    std::uint32_t const to_even = 0x7fff + (bits >> 16 & 1);
    return std::bit_cast<float>((bits + to_even) & 0xffff0000U);
}

float rounded_to_f16(float value) noexcept {
    float const size = std::abs(value);
    if (!(size > 0) || std::isinf(value)) return value;
    // 11 significant bits, fewer below 2^-14. Adding and subtracting a number with the right last
    // place rounds to it.
    int const exponent = std::max(std::ilogb(size), -14);
    double const step = std::ldexp(1.0, exponent - 10);
    double const nearest = std::nearbyint(static_cast<double>(size) / step) * step;
    return std::copysign(nearest > 65504 ? HUGE_VALF : static_cast<float>(nearest), value);
}

Result<void> check(AttentionInput const& input, std::uint32_t rows, std::uint32_t columns) {
    auto const refuse = [](std::string message) {
        return Error{ErrorCode::InvalidArgument, std::move(message)};
    };
    if (input.kv_heads == 0 || input.q_heads == 0 || input.q_heads % input.kv_heads != 0)
        return refuse(fmt::format("q_heads is {}, no multiple of kv_heads {}", input.q_heads,
                                  input.kv_heads));
    if (input.head_dim == 0) return refuse("head_dim is 0");
    if (input.queries.size() != std::size_t{input.q_heads} * input.query_rows * input.head_dim)
        return refuse(fmt::format("{} numbers are not {} query heads of {} rows",
                                  input.queries.size(), input.q_heads, input.query_rows));
    if (input.keys.size() != std::size_t{input.kv_heads} * input.tokens * input.head_dim)
        return refuse(fmt::format("{} numbers are not {} KV heads of {} tokens", input.keys.size(),
                                  input.kv_heads, input.tokens));
    if (rows == 0 || rows > input.query_rows || rows > input.tokens)
        return refuse(fmt::format("the queries of {} rows are wanted; there are {}, of {} tokens",
                                  rows, input.query_rows, input.tokens));
    if (columns > input.tokens)
        return refuse(fmt::format("columns is {} of {} tokens", columns, input.tokens));
    return check_sink_logits(input.sink_logits, input.q_heads);
}

/// One query's attention over the tokens that it sees, in the model's dtype.
void attend(AttentionInput const& input,
            float const* query,
            float const* keys,
            std::optional<float> sink,
            std::vector<float>& seen) {
    auto const root = static_cast<float>(std::sqrt(static_cast<double>(input.head_dim)));
    for (std::size_t token = 0; token < seen.size(); ++token) {
        float const product =
            rounded_to(input.dtype, dot(query, keys + token * input.head_dim, input.head_dim));
        seen[token] = rounded_to(input.dtype, product / root);
    }
    if (sink) seen.push_back(rounded_to(input.dtype, *sink));
    float const largest = *std::ranges::max_element(seen);
    float sum = 0;
    for (float& logit : seen)
        sum += logit = std::exp(logit - largest);
    if (sink) seen.pop_back();
    for (float& share : seen)
        share = rounded_to(input.dtype, share / sum);
}

}  // namespace

float rounded_to(Dtype dtype, float value) noexcept {
    switch (dtype) {
        case Dtype::F32: return value;
        case Dtype::Bf16: return rounded_to_bf16(value);
        case Dtype::F16: return rounded_to_f16(value);
    }
    return value;
}

RowSum::RowSum(std::size_t rows, std::size_t columns)
    : level_power_(
          std::max<std::size_t>(4, std::bit_width(std::max<std::size_t>(rows, 1) - 1) / 4)),
      columns_(columns) {
    for (auto& level : levels_)
        level.assign(columns, 0.0f);
}

void RowSum::add(std::span<float const> row) {
    for (std::size_t column = 0; column < columns_; ++column)
        levels_[0][column] += row[column];
    ++rows_added_;
    std::size_t const mask = (std::size_t{1} << level_power_) - 1;
    for (std::size_t level = 1; level < kLevels; ++level) {
        if ((rows_added_ & (mask << (level - 1) * level_power_)) != 0) return;
        for (std::size_t column = 0; column < columns_; ++column) {
            levels_[level][column] += levels_[level - 1][column];
            levels_[level - 1][column] = 0;
        }
    }
}

std::vector<float> RowSum::total() const {
    std::vector<float> total = levels_[0];
    for (std::size_t level = 1; level < kLevels; ++level)
        for (std::size_t column = 0; column < columns_; ++column)
            total[column] += levels_[level][column];
    return total;
}

Result<std::vector<float>> attention_sums(AttentionInput const& input,
                                          std::uint32_t rows,
                                          std::uint32_t columns) {
    DKV_TRY(check(input, rows, columns));
    std::uint32_t const group = input.q_heads / input.kv_heads;
    std::vector<float> sums;
    for (std::size_t head = 0; head < input.q_heads; ++head) {
        float const* const keys = input.keys.data() + head / group * input.tokens * input.head_dim;
        std::optional<float> const sink =
            input.sink_logits.empty() ? std::nullopt : std::optional(input.sink_logits[head]);
        RowSum sum(rows, columns);
        std::vector<float> seen;
        for (std::uint32_t row = 0; row < rows; ++row) {
            std::size_t const at = head * input.query_rows + input.query_rows - rows + row;
            seen.assign(input.tokens - rows + row + 1, 0.0f);
            attend(input, input.queries.data() + at * input.head_dim, keys, sink, seen);
            seen.resize(std::max<std::size_t>(seen.size(), columns), 0.0f);
            sum.add(std::span<float const>(seen).first(columns));
        }
        for (float const total : sum.total())
            sums.push_back(rounded_to(input.dtype, total));
    }
    return sums;
}

}  // namespace dkv::reference
