// Rows of text, aligned.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/render/style.h"

namespace dkv::cli {

struct Column {
    enum class Align { Left, Right };
    std::string title;
    Align align = Align::Left;
};

class Table {
public:
    explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

    /// As many cells as there are columns.
    void add(std::vector<std::string> cells);
    /// A line of its own below the last row, indented.
    void note(std::string text) { rows_.back().notes.push_back(std::move(text)); }
    bool empty() const noexcept { return rows_.empty(); }

    /// Ends with a newline; no line ends with a space.
    std::string text(Style const& style) const;

private:
    struct Row {
        std::vector<std::string> cells;
        std::vector<std::string> notes;
    };
    std::string line(std::vector<std::string> const& cells,
                     std::vector<std::size_t> const& widths) const;

    std::vector<Column> columns_;
    std::vector<Row> rows_;
};

using Fields = std::vector<std::pair<std::string, std::string>>;

/// "name      value" lines, the values aligned and broken at the screen's edge.
std::string fields_text(Fields const& fields, std::size_t indent, Style const& style);

}  // namespace dkv::cli
