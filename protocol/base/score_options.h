// How scores are made: words that policies, kernels and the wire share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

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

/// Whose questions a cache is compacted for. Numbers are part of the wire protocol.
enum class Purpose : std::uint8_t { Both = 0, Reuse = 1, ThisQuestion = 2 };

/// The words of an enumeration that may be asked for, in the order of their numbers.
template <class Word>
inline constexpr std::array<std::string_view, 0> kWordsOf{};
template <>
inline constexpr std::array<std::string_view, 2> kWordsOf<Pool>{"max", "avg"};
template <>
inline constexpr std::array<std::string_view, 3> kWordsOf<GroupReduce>{"mean", "max", "sum"};
template <>
inline constexpr std::array<std::string_view, 3> kWordsOf<Granularity>{"layer", "head",
                                                                       "layer-head"};
template <>
inline constexpr std::array<std::string_view, 3> kWordsOf<ScoreNorm>{"none", "layer",
                                                                     "layer-nosink"};

template <>
inline constexpr std::array<std::string_view, 3> kWordsOf<Purpose>{"both", "reuse",
                                                                   "this-question"};

/// "unknown" for a number that has no word; "none" for GroupReduce::None.
template <class Word>
requires(kWordsOf<Word>.size() > 0) constexpr std::string_view name_of(Word word) noexcept {
    auto const index = static_cast<std::size_t>(word);
    if (index < kWordsOf<Word>.size()) return kWordsOf<Word>[index];
    if constexpr (std::is_same_v<Word, GroupReduce>)
        if (word == GroupReduce::None) return "none";
    return "unknown";
}

}  // namespace dkv
