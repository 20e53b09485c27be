#include "cli/render/notices.h"

#include <ctime>

#include <fmt/format.h>

#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::string clock_text(std::uint64_t at_ms) {
    auto const seconds = static_cast<std::time_t>(at_ms / 1000);
    std::tm parts{};
    ::localtime_r(&seconds, &parts);
    return fmt::format("{:02}:{:02}:{:02}.{:03}", parts.tm_hour, parts.tm_min, parts.tm_sec,
                       at_ms % 1000);
}

Tone tone_of(std::string_view kind) {
    if (kind == "session_failed" || kind == "stopping") return Tone::Bad;
    if (kind == "instance_gone") return Tone::Warn;
    if (kind == "session_adopted" || kind == "session_committed") return Tone::Good;
    return Tone::Plain;
}

}  // namespace

std::string notice_line(wire::NoticeT const& notice, Style const& style) {
    auto const kind = fmt::format("{:<17}", one_line(notice.kind));
    std::string line = clock_text(notice.at_ms) + "  " + toned(tone_of(notice.kind), kind, style);
    if (notice.session != 0)
        line += "  " + hex_id(notice.session);
    else if (notice.instance != 0)
        line += "  " + hex_id(notice.instance);
    if (!notice.text.empty()) line += "  " + one_line(notice.text);
    return line;
}

}  // namespace dkv::cli
