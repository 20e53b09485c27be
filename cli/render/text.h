// Small pieces of text: numbers for people, colours, bars.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cli/render/style.h"

namespace dkv::cli {

/// "0 B", "1.5 KiB", "157.5 MiB", "1.25 GiB"
std::string human_bytes(std::uint64_t bytes);
/// "850 ms", "12.5 s", "3 min 20 s", "2 h 5 min", "4 d 1 h"
std::string human_duration(std::uint64_t ms);
/// 0.97123 → "97.1 %"
std::string human_share(double share);
/// part of whole; "-" when whole is 0.
std::string human_share(std::uint64_t part, std::uint64_t whole);
/// "1 session", "2 sessions"
std::string counted(std::uint64_t count, std::string_view noun);
/// "0x00000000deadbeef"
std::string hex_id(std::uint64_t id);
/// Lower case with underscores, from an enumerator's name.
std::string lower(std::string_view name);

/// Foreign text on one line, without control characters, which could change the terminal.
std::string one_line(std::string_view text);
/// A field of a CSV file: in quotes where it has to be.
std::string csv_cell(std::string text);
/// Columns a terminal needs for it: a code point counts as one, a colour as none.
std::size_t display_width(std::string_view text);
/// At most `width` columns; what is cut is marked.
std::string shortened(std::string_view text, std::size_t width, Style const& style);
/// Words broken at `width` columns, every line but the first indented.
std::string wrapped(std::string_view text, std::size_t width, std::size_t indent);

enum class Tone { Plain, Bold, Dim, Good, Warn, Bad };
std::string toned(Tone tone, std::string_view text, Style const& style);

/// share in 0 … 1 of `width` columns.
std::string bar(double share, std::size_t width, Style const& style);

}  // namespace dkv::cli
