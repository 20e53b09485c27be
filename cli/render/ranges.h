// Tables of layers: neighbours that are alike share a line.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/render/table.h"

namespace dkv::cli {

/// "7", or "0-29"
inline std::string range_text(std::size_t first, std::size_t last) {
    return std::to_string(first) + (first == last ? "" : "-" + std::to_string(last));
}

/// A line for each stretch of 0 … count - 1 with the same cells, behind a cell that names it.
inline void add_ranges(Table& table,
                       std::size_t count,
                       std::function<std::vector<std::string>(std::size_t)> const& cells_of) {
    for (std::size_t first = 0; first < count;) {
        auto cells = cells_of(first);
        std::size_t last = first;
        while (last + 1 < count && cells_of(last + 1) == cells)
            ++last;
        cells.insert(cells.begin(), range_text(first, last));
        table.add(std::move(cells));
        first = last + 1;
    }
}

}  // namespace dkv::cli
