// How scores are made: words that policies, kernels and the wire share.
#pragma once

#include <cstdint>
#include <string_view>

namespace dkv {

/// Smoothing along tokens. Numbers are part of the wire protocol.
enum class Pool : std::uint8_t { Max = 0, Avg = 1 };

/// How the scores of the query heads that share a KV head become one. Numbers are part of the wire
/// protocol; None (one row of scores per query head) never travels.
enum class GroupReduce : std::uint8_t { Mean = 0, Max = 1, Sum = 2, None = 3 };

constexpr std::string_view name_of(Pool pool) noexcept {
    return pool == Pool::Max ? "max" : "avg";
}

constexpr std::string_view name_of(GroupReduce reduce) noexcept {
    switch (reduce) {
        case GroupReduce::Mean: return "mean";
        case GroupReduce::Max: return "max";
        case GroupReduce::Sum: return "sum";
        case GroupReduce::None: return "none";
    }
    return "unknown";
}

}  // namespace dkv
