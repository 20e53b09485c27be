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

/// What shares a budget: the layers (their heads alike), the heads inside each layer (layers
/// alike), or every head of every layer. Numbers are part of the wire protocol.
enum class Granularity : std::uint8_t { Layer = 0, Head = 1, LayerHead = 2 };

/// How the scores of different layers are made comparable before they are counted. Layer: each
/// layer divided by its sum; LayerNoSink: after its first tokens were set aside. Numbers are part
/// of the wire protocol.
enum class ScoreNorm : std::uint8_t { None = 0, Layer = 1, LayerNoSink = 2 };

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

constexpr std::string_view name_of(Granularity granularity) noexcept {
    switch (granularity) {
        case Granularity::Layer: return "layer";
        case Granularity::Head: return "head";
        case Granularity::LayerHead: return "layer-head";
    }
    return "unknown";
}

constexpr std::string_view name_of(ScoreNorm norm) noexcept {
    switch (norm) {
        case ScoreNorm::None: return "none";
        case ScoreNorm::Layer: return "layer";
        case ScoreNorm::LayerNoSink: return "layer-nosink";
    }
    return "unknown";
}

}  // namespace dkv
