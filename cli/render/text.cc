#include "cli/render/text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include <fmt/format.h>

namespace dkv::cli {

std::string human_bytes(std::uint64_t bytes) {
    constexpr std::array kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) return fmt::format("{} B", bytes);
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    // 1023.95 KiB would print as "1024.0 KiB".
    while (value >= 1023.95 && unit + 1 < kUnits.size()) {
        value /= 1024;
        ++unit;
    }
    return fmt::format("{:.{}f} {}", value, unit >= 3 ? 2 : 1, kUnits[unit]);
}

std::string human_duration(std::uint64_t ms) {
    constexpr std::uint64_t kMinute = 60;
    constexpr std::uint64_t kHour = 60 * kMinute;
    constexpr std::uint64_t kDay = 24 * kHour;
    if (ms < 1000) return fmt::format("{} ms", ms);
    std::uint64_t const s = ms / 1000;
    if (s < kMinute) return fmt::format("{}.{} s", s, ms % 1000 / 100);
    if (s < kHour) return fmt::format("{} min {} s", s / kMinute, s % kMinute);
    if (s < kDay) return fmt::format("{} h {} min", s / kHour, s % kHour / kMinute);
    return fmt::format("{} d {} h", s / kDay, s % kDay / kHour);
}

std::string human_share(double share) {
    return fmt::format("{:.1f} %", share * 100);
}

std::string human_share(std::uint64_t part, std::uint64_t whole) {
    if (whole == 0) return "-";
    return human_share(static_cast<double>(part) / static_cast<double>(whole));
}

std::string counted(std::uint64_t count, std::string_view noun) {
    return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string hex_id(std::uint64_t id) {
    return fmt::format("0x{:016x}", id);
}

std::string lower(std::string_view name) {
    std::string out(name);
    std::transform(out.begin(), out.end(), out.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
}

std::string one_line(std::string_view text) {
    std::string out;
    for (std::size_t at = 0; at < text.size(); ++at) {
        auto const c = static_cast<unsigned char>(text[at]);
        if (c == '\n' || c == '\t' || c == '\r') {
            out += ' ';
        } else if (c < 0x20 || c == 0x7f) {
            out += '?';
        } else if (c == 0xc2 && at + 1 < text.size() &&
                   static_cast<unsigned char>(text[at + 1]) < 0xa0) {
            out += '?';  // U+0080 … U+009F: control characters in two bytes.
            ++at;
        } else {
            out += static_cast<char>(c);
        }
    }
    return out;
}

std::string csv_cell(std::string text) {
    if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
    std::string quoted = "\"";
    for (char const c : text)
        quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + "\"";
}

std::size_t display_width(std::string_view text) {
    std::size_t columns = 0;
    bool in_escape = false;  // From ESC to the letter that ends it: toned() writes no others.
    for (char const c : text) {
        auto const byte = static_cast<unsigned char>(c);
        if (byte == 0x1b) in_escape = true;
        if (!in_escape && (byte & 0xc0U) != 0x80U) ++columns;
        if (in_escape && std::isalpha(byte) != 0) in_escape = false;
    }
    return columns;
}

std::string shortened(std::string_view text, std::size_t width, Style const& style) {
    if (display_width(text) <= width) return std::string(text);
    std::string_view const mark = style.unicode ? "…" : "~";
    std::size_t columns = 0;
    std::size_t bytes = 0;
    while (bytes < text.size()) {
        bool const starts = (static_cast<unsigned char>(text[bytes]) & 0xc0U) != 0x80U;
        if (starts && ++columns > width - 1) break;
        ++bytes;
    }
    return std::string(text.substr(0, bytes)) + std::string(mark);
}

std::string wrapped(std::string_view text, std::size_t width, std::size_t indent) {
    std::string out;
    std::size_t column = 0;
    while (!text.empty()) {
        auto const end = std::min(text.find(' '), text.size());
        auto const word = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (word.empty()) continue;
        auto const word_width = display_width(word);
        if (column > 0 && column + 1 + word_width > width) {
            out += "\n" + std::string(indent, ' ');
            column = 0;
        } else if (column > 0) {
            out += ' ';
            ++column;
        }
        out += word;
        column += word_width;
    }
    return out;
}

std::string toned(Tone tone, std::string_view text, Style const& style) {
    constexpr std::array kCodes{"", "1", "2", "32", "33", "31"};
    if (!style.color || tone == Tone::Plain) return std::string(text);
    return fmt::format("\x1b[{}m{}\x1b[0m", kCodes[static_cast<std::size_t>(tone)], text);
}

std::string bar(double share, std::size_t width, Style const& style) {
    constexpr std::array kEighths{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    double const clamped = std::isnan(share) ? 0 : std::clamp(share, 0.0, 1.0);
    double const columns = clamped * static_cast<double>(width);
    std::string out;
    if (!style.unicode) {
        auto const full = static_cast<std::size_t>(std::lround(columns));
        return std::string(full, '#') + std::string(width - full, ' ');
    }
    auto const eighths = static_cast<std::size_t>(std::lround(columns * 8));
    for (std::size_t column = 0; column < eighths / 8; ++column)
        out += "█";
    out += kEighths[eighths % 8];
    out.append(width - (eighths + 7) / 8, ' ');
    return out;
}

}  // namespace dkv::cli
