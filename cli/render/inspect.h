// What is in a saved cache.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "cli/render/json.h"
#include "cli/render/style.h"
#include "cli/saved/formats/saved_cache.h"

namespace dkv::cli {

/// Parts of the prompt that LayerPositions tells apart.
constexpr std::size_t kPromptParts = 16;

/// Which tokens a layer's heads keep.
struct LayerPositions {
    std::int32_t first = 0;
    std::int32_t last = 0;
    std::uint64_t runs = 0;  ///< Stretches without a gap, over the heads.
    /// Share of each sixteenth of the prompt that is kept, mean over the heads.
    std::array<double, kPromptParts> share = {};
};

struct InspectedLayer {
    std::vector<std::uint32_t> lengths;  ///< [kv_heads]
    std::uint64_t bytes = 0;             ///< K and V.
    LayerPositions positions;
};

struct InspectedFile {
    std::string path;
    CacheFacts facts;
    std::vector<InspectedLayer> layers;
    bool verified = false;  ///< Every byte was read.
};

/// Errors: those of reading the positions.
Result<InspectedFile> inspect_file(SavedCache const& file, std::string path);

std::string inspect_text(InspectedFile const& file, Style const& style);
Json to_json(InspectedFile const& file);

}  // namespace dkv::cli
