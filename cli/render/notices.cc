#include "cli/render/notices.h"

#include <algorithm>
#include <ctime>
#include <vector>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/sessions.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

constexpr std::size_t kSessionsShown = 8;
constexpr std::size_t kBarColumns = 20;

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

std::string session_line(wire::SessionInfoT const& session, Style const& style) {
    auto const state = lower(EnumNameSessionState(session.state));
    double const done =
        session.layers == 0 ? 0 : static_cast<double>(session.layers_done) / session.layers;
    std::string line =
        fmt::format("{}  {:<9} {:>7} tokens  {:<17} ", hex_id(session.session), state,
                    session.prompt_tokens, policy_brief(session.policy.get()));
    if (session.state == wire::SessionState::Failed) return line + one_line(session.error);
    line += "[" + bar(done, kBarColumns, style) + "] ";
    auto const kept = kept_tokens(session);
    if (kept.max > 0) line += fmt::format("kept {}/{:.0f}/{}", kept.min, kept.mean, kept.max);
    return line;
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

std::string screen_text(Screen const& screen, Style const& style) {
    Style plain = style;
    plain.color = false;  // Lines are cut at the screen's edge: a cut must not split a colour.
    std::vector<std::string> lines;
    auto const& status = screen.status;
    if (!screen.error.empty()) {
        lines.push_back("dkv watch: " + one_line(screen.error) + "; trying again (Ctrl-C ends)");
    } else {
        lines.push_back(fmt::format(
            "dkvd {}  pid {}  up {}  {}  {}  {} mapped", one_line(status.version), status.pid,
            human_duration(status.uptime_ms), counted(status.instances, "engine"),
            counted(status.sessions_open, "open session"), human_bytes(status.mapped_bytes)));
        lines.push_back("policy   " + policy_line(status.policy.get()));
        lines.push_back("savings  " + savings_brief(status.savings.get()));
    }
    lines.emplace_back();
    for (auto const& item : screen.instances.instances)
        lines.push_back(fmt::format("{}  pid {}  {}  {}  {}  {}", hex_id(item->instance), item->pid,
                                    one_line(item->engine), one_line(item->model),
                                    policy_brief(item->policy.get()),
                                    counted(item->sessions_open, "open session")));
    if (screen.instances.instances.empty()) lines.emplace_back("no engine is attached");
    lines.emplace_back();
    auto const& sessions = screen.sessions.sessions;
    auto const first = sessions.size() > kSessionsShown ? sessions.size() - kSessionsShown : 0;
    for (std::size_t index = first; index < sessions.size(); ++index)
        lines.push_back(session_line(*sessions[index], plain));
    if (!sessions.empty()) lines.emplace_back();

    std::size_t const rows = std::max<std::size_t>(style.rows, 2) - 1;
    if (lines.size() > rows) lines.resize(rows);
    std::size_t const room = rows - lines.size();
    auto const skip = screen.events.size() > room ? screen.events.size() - room : 0;
    for (std::size_t index = skip; index < screen.events.size(); ++index)
        lines.push_back(screen.events[index]);

    std::string out;
    for (auto const& line : lines)
        out += shortened(line, style.columns, plain) + "\n";
    return out;
}

}  // namespace dkv::cli
