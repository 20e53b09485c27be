#include "cli/render/table.h"

#include <algorithm>

#include "cli/render/text.h"
#include "protocol/base/assert.h"

namespace dkv::cli {

void Table::add(std::vector<std::string> cells) {
    DKV_ASSERT(cells.size() == columns_.size());
    rows_.push_back({std::move(cells), {}});
}

std::string Table::line(std::vector<std::string> const& cells,
                        std::vector<std::size_t> const& widths) const {
    std::string out;
    for (std::size_t index = 0; index < cells.size(); ++index) {
        std::string const blanks(widths[index] - display_width(cells[index]), ' ');
        bool const right = columns_[index].align == Column::Align::Right;
        out += index == 0 ? "" : "  ";
        out += right ? blanks + cells[index] : cells[index] + blanks;
    }
    out.erase(out.find_last_not_of(' ') + 1);
    return out;
}

std::string Table::text(Style const& style) const {
    std::vector<std::size_t> widths;
    std::vector<std::string> titles;
    for (std::size_t index = 0; index < columns_.size(); ++index) {
        titles.push_back(columns_[index].title);
        std::size_t width = display_width(titles.back());
        for (Row const& row : rows_)
            width = std::max(width, display_width(row.cells[index]));
        widths.push_back(width);
    }
    std::string out = toned(Tone::Bold, line(titles, widths), style) + "\n";
    for (Row const& row : rows_) {
        out += line(row.cells, widths) + "\n";
        for (auto const& note : row.notes)
            out += "    " + note + "\n";
    }
    return out;
}

std::string fields_text(Fields const& fields, std::size_t indent, Style const& style) {
    constexpr std::size_t kValueColumnsMin = 30;
    std::size_t names = 0;
    for (auto const& [name, value] : fields)
        names = std::max(names, display_width(name));
    std::size_t const start = indent + names + 2;
    std::size_t const width = std::max(style.columns, start + kValueColumnsMin) - start;
    std::string out;
    for (auto const& [name, value] : fields)
        out += std::string(indent, ' ') + name + std::string(names - display_width(name) + 2, ' ') +
               wrapped(value, width, start) + "\n";
    return out;
}

}  // namespace dkv::cli
