// Where a context keeps the cells of each layer, and giving the pages of cells without a token back
// to the system.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/container/llama_layout.h"
#include "protocol/sdk/llama/library.h"

namespace dkv::llama {

/// A sequence that has the first cells of its part of the buffers, and the only tokens there.
struct StoredSequence {
    std::span<std::byte const> state;
    LlamaLayout const& layout;              ///< Of `state`.
    std::span<std::uint32_t const> layers;  ///< The state's, as the model numbers them.
    std::uint32_t cells_before = 0;         ///< That it had, before it was compressed.
};

/// What the system took back.
struct Returned {
    std::uint64_t bytes = 0;
    std::uint64_t bytes_before = 0;  ///< Of these: of the cells before. The others had no token.
};

class CellMemory {
public:
    explicit CellMemory(Library const& library) : library_(library) {}

    void set_layers(std::uint32_t layers) { keys_.assign(layers, {}), values_.assign(layers, {}); }

    /// Takes the address of a node that stores rows in the cache. Does nothing with other nodes.
    void note(ggml_tensor const* tensor);

    /// Gives resident pages of the sequence's part back that hold none of its cells. They read as
    /// zero from then on, as in a new context. Nothing, and nothing is touched: a layer's buffer
    /// was not seen, is not this process's own memory, or does not begin with the sequence's rows.
    Returned give_back(StoredSequence const& stored) const;

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
