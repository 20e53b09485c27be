// A LentPrompt's K and V again in the blocks of an engine's pool, as vLLM has them on a CPU:
// head-major, keys as [head_dim, tokens] and values behind them, the blocks in no order.
#pragma once

#include <memory>
#include <vector>

#include "tests/support/lent_prompt.h"

namespace dkv::test {

class PagedPrompt {
public:
    static constexpr std::uint32_t kBlockTokens = 16;
    static constexpr std::uint32_t kHeadStride = 2 * kBlockTokens * LentPrompt::kDim;
    static constexpr std::uint32_t kBlockStride = LentPrompt::kKvHeads * kHeadStride;

    explicit PagedPrompt(LentPrompt const& dense)
        : memory(LentPrompt::kLayers * kLayerBytes + kQueriesBytes * LentPrompt::kLayers) {
        std::vector<std::int32_t> order;
        for (std::uint32_t block = 0; block * kBlockTokens < LentPrompt::kTokens; ++block)
            order.push_back(static_cast<std::int32_t>((block * 7 + 3) % kPoolBlocks));
        ids = std::make_shared<std::vector<std::int32_t> const>(std::move(order));
        for (std::uint32_t layer = 0; layer < LentPrompt::kLayers; ++layer) {
            fill(layer, dense);
            std::memcpy(memory.at<std::byte>(queries_offset(layer)),
                        dense.memory.at<std::byte>(LentPrompt::queries_offset(layer)),
                        kQueriesBytes);
        }
    }

    static constexpr std::uint64_t keys_offset(std::uint32_t layer) { return layer * kLayerBytes; }
    static constexpr std::uint64_t values_offset(std::uint32_t layer) {
        return keys_offset(layer) + kHeadStride / 2 * sizeof(float);
    }
    static constexpr std::uint64_t queries_offset(std::uint32_t layer) {
        return LentPrompt::kLayers * kLayerBytes + layer * kQueriesBytes;
    }

    EngineMemory memory;
    std::shared_ptr<std::vector<std::int32_t> const> ids;

private:
    void fill(std::uint32_t layer, LentPrompt const& dense) {
        auto const* const keys = dense.memory.at<float>(LentPrompt::keys_offset(layer));
        auto const* const values = dense.memory.at<float>(LentPrompt::values_offset(layer));
        for (std::uint32_t head = 0; head < LentPrompt::kKvHeads; ++head)
            for (std::uint32_t token = 0; token < LentPrompt::kTokens; ++token) {
                auto const block = static_cast<std::uint64_t>((*ids)[token / kBlockTokens]);
                auto const at = block * kBlockStride + std::uint64_t{head} * kHeadStride;
                auto const in_block = token % kBlockTokens;
                for (std::uint32_t dim = 0; dim < LentPrompt::kDim; ++dim) {
                    auto const from =
                        (std::size_t{head} * LentPrompt::kTokens + token) * LentPrompt::kDim + dim;
                    memory.at<float>(keys_offset(layer))[at + dim * kBlockTokens + in_block] =
                        keys[from];
                    memory.at<float>(values_offset(layer))[at + in_block * LentPrompt::kDim + dim] =
                        values[from];
                }
            }
    }

    static constexpr std::uint32_t kPoolBlocks = 20;
    static constexpr std::uint64_t kLayerBytes =
        std::uint64_t{kPoolBlocks} * kBlockStride * sizeof(float);
    static constexpr std::uint64_t kQueriesBytes =
        std::uint64_t{LentPrompt::kQHeads} * LentPrompt::kWindow * LentPrompt::kDim * sizeof(float);
};

}  // namespace dkv::test
