// One prompt's K, V and queries of a small model in an engine's memory, made of repeatable numbers.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>

#include "protocol/base/geometry.h"
#include "tests/support/engine_memory.h"

namespace dkv::test {

/// 3 layers, 4/2 heads of 8 numbers, f32; 200 tokens, a window of 8.
class LentPrompt {
public:
    static constexpr std::uint32_t kLayers = 3;
    static constexpr std::uint32_t kQHeads = 4;
    static constexpr std::uint32_t kKvHeads = 2;
    static constexpr std::uint32_t kDim = 8;
    static constexpr std::uint32_t kTokens = 200;
    static constexpr std::uint32_t kWindow = 8;

    static constexpr Geometry geometry() {
        return {.layers = kLayers,
                .q_heads = kQHeads,
                .kv_heads = kKvHeads,
                .head_dim = kDim,
                .dtype = Dtype::F32};
    }

    LentPrompt() : memory(kLayers * kLayerBytes) {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        auto* const numbers = memory.at<float>(0);
        for (std::size_t i = 0; i < kLayers * kLayerBytes / sizeof(float); ++i)
            numbers[i] = normal(random);
    }

    static constexpr std::uint64_t keys_offset(std::uint32_t layer) { return layer * kLayerBytes; }
    static constexpr std::uint64_t values_offset(std::uint32_t layer) {
        return keys_offset(layer) + kRowsBytes;
    }
    static constexpr std::uint64_t queries_offset(std::uint32_t layer) {
        return values_offset(layer) + kRowsBytes;
    }
    /// Whether `row` is the bytes of this token's K (or V) in this layer and head.
    bool is_row(std::uint64_t offset,
                std::uint32_t head,
                std::uint32_t token,
                void const* row) const {
        std::size_t const bytes = kDim * sizeof(float);
        auto const* const mine =
            memory.at<std::byte>(offset) + (std::size_t{head} * kTokens + token) * bytes;
        return std::memcmp(mine, row, bytes) == 0;
    }

    EngineMemory memory;

private:
    static constexpr std::uint64_t kRowsBytes =
        std::uint64_t{kKvHeads} * kTokens * kDim * sizeof(float);
    static constexpr std::uint64_t kQueriesBytes =
        std::uint64_t{kQHeads} * kWindow * kDim * sizeof(float);
    static constexpr std::uint64_t kLayerBytes = 2 * kRowsBytes + kQueriesBytes;
};

}  // namespace dkv::test
