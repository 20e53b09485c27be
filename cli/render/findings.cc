#include "cli/render/findings.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::string_view name_of(doctor::Level level) {
    switch (level) {
        case doctor::Level::Ok: return "ok";
        case doctor::Level::Warn: return "warn";
        case doctor::Level::Fail: return "fail";
    }
    return "unknown";
}

Tone tone_of(doctor::Level level) {
    if (level == doctor::Level::Ok) return Tone::Good;
    return level == doctor::Level::Warn ? Tone::Warn : Tone::Bad;
}

std::string summary(std::vector<doctor::Finding> const& findings) {
    auto const count = [&](doctor::Level level) {
        return std::count_if(findings.begin(), findings.end(),
                             [&](auto const& finding) { return finding.level == level; });
    };
    auto const fails = count(doctor::Level::Fail);
    auto const warns = count(doctor::Level::Warn);
    if (fails > 0)
        return fmt::format("{} failed, {} to look at: dkv will not work fully here.", fails, warns);
    if (warns > 0) return fmt::format("Nothing failed, {} to look at: dkv works here.", warns);
    return "Everything is fine: dkv works here.";
}

}  // namespace

std::string findings_text(std::vector<doctor::Finding> const& findings, Style const& style) {
    constexpr std::size_t kNameColumns = 17;
    constexpr std::size_t kIndent = 6 + kNameColumns;
    std::size_t const width = std::max<std::size_t>(style.columns, kIndent + 30) - kIndent;
    std::string out;
    for (auto const& finding : findings) {
        out += toned(tone_of(finding.level), fmt::format("{:<4}", name_of(finding.level)), style) +
               "  " + toned(Tone::Bold, fmt::format("{:<{}}", finding.name, kNameColumns), style) +
               wrapped(one_line(finding.found), width, kIndent) + "\n";
        std::string const blanks(kIndent, ' ');
        out += blanks + toned(Tone::Dim, wrapped(one_line(finding.means), width, kIndent), style) +
               "\n";
        if (!finding.advice.empty())
            out +=
                blanks +
                wrapped((style.unicode ? "→ " : "-> ") + one_line(finding.advice), width, kIndent) +
                "\n";
    }
    return out + "\n" + summary(findings) + "\n";
}

nlohmann::ordered_json findings_json(std::vector<doctor::Finding> const& findings) {
    auto list = nlohmann::ordered_json::array();
    for (auto const& finding : findings)
        list.push_back({{"name", finding.name},
                        {"level", name_of(finding.level)},
                        {"found", finding.found},
                        {"means", finding.means},
                        {"advice", finding.advice}});
    return {{"worst", name_of(doctor::worst(findings))}, {"findings", list}};
}

}  // namespace dkv::cli
