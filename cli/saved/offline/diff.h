// Where two policies differ over one saved prompt.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/saved/offline/side.h"

namespace dkv::offline {

/// What one side stores of a layer, or of all layers.
struct Stored {
    std::uint64_t entries = 0;     ///< Rows of K, over the heads that it stores.
    std::uint64_t duplicates = 0;  ///< Entries that repeat a position of the same head.
    std::uint64_t only_here = 0;   ///< (query head, position) pairs that the other side dropped.
    std::uint64_t bytes = 0;       ///< K and V of all entries.
    double tokens_per_head = 0;    ///< Mean entries of a stored head.
    /// Mean share of the window's attention on positions kept; nothing when it is unknown.
    std::optional<double> mass;
};

struct LayerDiff {
    std::array<Stored, 2> sides;
    std::uint64_t shared = 0;  ///< (query head, position) pairs that both keep.
};

struct Diff {
    std::array<std::string, 2> names;
    std::array<std::uint32_t, 2> heads;  ///< Stored per layer: KV heads or query heads.
    Geometry geometry;
    std::string model;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t capacity = 0;
    std::uint32_t window = 0;
    std::vector<LayerDiff> layers;
    LayerDiff total;  ///< Means where a layer has means.

    bool same() const noexcept {
        return total.sides[0].only_here == 0 && total.sides[1].only_here == 0 &&
               total.sides[0].bytes == total.sides[1].bytes;
    }
};

/// A KV head's rows count for each of its query heads. The mass is unknown where the file has fewer
/// queries than the window, or a side dropped tokens of the window.
///
/// Errors: those of the backend.
Result<Diff> compare(Backend& backend, SavedCache const& file, Side const& a, Side const& b);

}  // namespace dkv::offline
