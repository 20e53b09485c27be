#include "cli/render/screen.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/sessions.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

constexpr std::size_t kSessionsShownMin = 8;
constexpr std::size_t kBarColumns = 20;

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
    if (session.bytes_peak > 0) line += "  peak " + human_bytes(session.bytes_peak);
    return line;
}

std::string instance_line(wire::InstanceInfoT const& item) {
    auto line = fmt::format("{}  pid {}  {}  {}  {}  {}", hex_id(item.instance), item.pid,
                            one_line(item.engine), one_line(item.model),
                            item.alive ? policy_brief(item.policy.get()) : std::string("gone"),
                            counted(item.sessions_open, "open session"));
    if (item.savings && item.savings->bytes_peak > 0)
        line += fmt::format("  {} dropped  peak {}", human_bytes(item.savings->bytes_dropped),
                            human_bytes(item.savings->bytes_peak));
    return line;
}

std::uint64_t weight(wire::SessionInfoT const& session, SortKey key) {
    switch (key) {
        case SortKey::Age: return 0;
        case SortKey::Tokens: return session.prompt_tokens;
        case SortKey::Bytes: return session.bytes_full;
        case SortKey::Peak: return session.bytes_peak;
        case SortKey::Busy: return session.busy_ns;
    }
    return 0;
}

std::uint64_t weight(wire::InstanceInfoT const& instance, SortKey key) {
    if (!instance.savings) return 0;
    switch (key) {
        case SortKey::Age: return 0;
        case SortKey::Tokens: return instance.savings->prompt_tokens;
        case SortKey::Bytes: return instance.savings->bytes_full;
        case SortKey::Peak: return instance.savings->bytes_peak;
        case SortKey::Busy: return instance.savings->busy_ns;
    }
    return 0;
}

template <class Item>
std::vector<Item const*> sorted(std::vector<std::unique_ptr<Item>> const& items, SortKey key) {
    std::vector<Item const*> out;
    out.reserve(items.size());
    for (auto const& item : items)
        out.push_back(item.get());
    if (key != SortKey::Age)
        std::stable_sort(out.begin(), out.end(), [key](auto const* a, auto const* b) {
            return weight(*a, key) > weight(*b, key);
        });
    return out;
}

void add_rates(std::vector<std::string>& lines, Screen const& screen) {
    if (!screen.before) return;
    auto const now = totals_of(screen.status);
    auto const& before = *screen.before;
    // Another sidecar may have taken the place of the first: its numbers begin again.
    if (now.uptime_ms <= before.uptime_ms || now.sessions < before.sessions) return;
    auto const seconds = static_cast<double>(now.uptime_ms - before.uptime_ms) * 1e-3;
    auto const per_second = [&](std::uint64_t from, std::uint64_t to) {
        auto const grown = static_cast<double>(to - std::min(from, to));
        return human_bytes(static_cast<std::uint64_t>(grown / seconds)) + "/s";
    };
    lines.push_back(fmt::format("rates    {:.1f} sessions/s, {} dropped, {} given back",
                                static_cast<double>(now.sessions - before.sessions) / seconds,
                                per_second(before.bytes_dropped, now.bytes_dropped),
                                per_second(before.bytes_back, now.bytes_back)));
}

std::vector<std::string> head_lines(Screen const& screen) {
    if (!screen.error.empty())
        return {"dkv watch: " + one_line(screen.error) + "; trying again (Ctrl-C ends)"};
    auto const& status = screen.status;
    std::vector<std::string> lines{
        fmt::format("dkvd {}  pid {}  up {}  {}  {}  {} mapped{}", one_line(status.version),
                    status.pid, human_duration(status.uptime_ms),
                    counted(status.instances, "engine"),
                    counted(status.sessions_open, "open session"), human_bytes(status.mapped_bytes),
                    status.draining ? "  draining" : ""),
        "policy   " + policy_line(status.policy.get()),
        "savings  " + savings_brief(status.savings.get())};
    add_rates(lines, screen);
    return lines;
}

}  // namespace

Screen::Totals totals_of(wire::StatusInfoT const& status) {
    if (!status.savings) return {.uptime_ms = status.uptime_ms};
    return {.uptime_ms = status.uptime_ms,
            .sessions = status.savings->sessions,
            .bytes_dropped = status.savings->bytes_dropped,
            .bytes_back = status.savings->bytes_returned + status.savings->bytes_pool};
}

std::string screen_text(Screen const& screen, Style const& style) {
    Style plain = style;
    plain.color = false;  // Lines are cut at the screen's edge: a cut must not split a colour.
    auto lines = head_lines(screen);
    lines.emplace_back();
    for (auto const* const item : sorted(screen.instances.instances, screen.sort))
        lines.push_back(instance_line(*item));
    if (screen.instances.instances.empty()) lines.emplace_back("no engine is attached");
    lines.emplace_back();
    auto sessions = sorted(screen.sessions.sessions, screen.sort);
    auto const shown = std::min(sessions.size(), std::max(kSessionsShownMin, style.rows / 3));
    bool const newest_last = screen.sort == SortKey::Age;
    auto const first = newest_last ? sessions.size() - shown : 0;
    for (std::size_t index = first; index < first + shown; ++index)
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
