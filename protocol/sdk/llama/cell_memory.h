// Where a context keeps the cells of each layer, and giving the pages of those without a token back
// to the system.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/container/llama_layout.h"
#include "protocol/sdk/llama/library.h"

namespace dkv::llama {

/// The one sequence that has cells, as llama.cpp gives it.
struct OnlySequence {
    std::span<std::byte const> state;
    LlamaLayout const& layout;              ///< Of `state`.
    std::span<std::uint32_t const> layers;  ///< The state's, as the model numbers them.
    std::uint32_t sequence = 0;
    std::uint32_t sequences_max = 1;  ///< Without kv_unified each has a part of the buffers.
};

class CellMemory {
public:
    explicit CellMemory(Library const& library) : library_(library) {}

    void set_layers(std::uint32_t layers) { keys_.assign(layers, {}), values_.assign(layers, {}); }

    /// Takes the address of a node that stores rows in the cache. Reads nothing of other nodes.
    void note(ggml_tensor const* tensor);

    /// The bytes that the system took back: those of resident pages that hold no cell of `only`.
    /// Such pages read as zero from then on, as in a new context. 0, and nothing is touched: a
    /// layer's buffer was not seen, is not this process's own memory, or does not hold the
    /// sequence's rows, one cell behind the other.
    std::uint64_t give_back(OnlySequence const& only) const;

private:
    struct Buffer {
        std::byte* data = nullptr;  ///< nullptr: not seen.
        std::uint64_t bytes = 0;
    };

    Library const& library_;
    std::vector<Buffer> keys_;  ///< [layers]
    std::vector<Buffer> values_;
};

}  // namespace dkv::llama
