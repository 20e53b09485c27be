#include "cli/render/sessions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using Align = Column::Align;

std::string mass_text(double mass) {
    return std::isnan(mass) ? "-" : human_share(mass);
}

std::string state_text(wire::SessionInfoT const& session) {
    auto const name = lower(EnumNameSessionState(session.state));
    if (session.state == wire::SessionState::Prefill && session.layers > 0)
        return fmt::format("{} {}/{}", name, session.layers_done, session.layers);
    return name.empty() ? "unknown" : name;
}

std::string kept_text(wire::SessionInfoT const& session) {
    if (session.lengths.empty()) return "-";
    auto const kept = kept_tokens(session);
    return fmt::format("{}/{:.0f}/{}", kept.min, kept.mean, kept.max);
}

/// Bytes that are only known after adoption read "-" before it.
std::string bytes_text(std::uint64_t bytes) {
    return bytes == 0 ? "-" : human_bytes(bytes);
}

std::string busy_text(std::uint64_t ns) {
    return fmt::format("{:.1f} ms", static_cast<double>(ns) / 1e6);
}

std::string sessions_of(wire::SessionListT const& list,
                        std::uint64_t instance,
                        Style const& style) {
    Table table({{"SESSION"},
                 {"STATE"},
                 {"TOKENS", Align::Right},
                 {"POLICY"},
                 {"KEPT min/mean/max", Align::Right},
                 {"MASS", Align::Right},
                 {"BUSY", Align::Right}});
    std::size_t const width = style.columns - 4;
    for (auto const& session : list.sessions) {
        if (session->instance != instance) continue;
        table.add({hex_id(session->session), state_text(*session),
                   std::to_string(session->prompt_tokens), policy_brief(session->policy.get()),
                   kept_text(*session), mass_text(mass_kept_mean(*session)),
                   busy_text(session->busy_ns)});
        auto const bytes = fmt::format(
            "full {}, kept {}, returned {} (measured){}, peak {}, final {}",
            human_bytes(session->bytes_full), bytes_text(session->bytes_kept),
            bytes_text(session->bytes_returned),
            session->bytes_pool == 0 ? std::string() : ", pool " + human_bytes(session->bytes_pool),
            bytes_text(session->bytes_peak), bytes_text(session->bytes_final));
        table.note(toned(Tone::Dim, wrapped(bytes, width, 4), style));
        if (!session->error.empty())
            table.note(
                toned(Tone::Bad, wrapped("error: " + one_line(session->error), width, 4), style));
    }
    return table.text(style);
}

/// Mean over the layer's KV heads.
double layer_tokens(wire::SessionInfoT const& session, std::size_t layer) {
    auto const heads = session.kv_heads;
    double sum = 0;
    for (std::size_t head = 0; head < heads; ++head)
        sum += session.lengths[layer * heads + head];
    return sum / heads;
}

std::string layer_chart(wire::SessionInfoT const& session, Style const& style) {
    constexpr std::size_t kTextColumns = 32;  // Everything on a line but the two bars.
    auto const heads = session.kv_heads;
    auto const layers = heads == 0 ? 0 : session.lengths.size() / heads;
    if (layers == 0) return {};
    double most = 1;
    for (std::size_t layer = 0; layer < layers; ++layer)
        most = std::max(most, layer_tokens(session, layer));
    bool const has_mass = session.mass_kept.size() == layers;
    std::size_t const width =
        std::min<std::size_t>(30, (std::max<std::size_t>(style.columns, 60) - kTextColumns) / 2);

    std::string out = toned(Tone::Bold,
                            fmt::format("LAYER  {:>8}  {:<{}}{}", "TOKENS", "KEPT PER KV HEAD",
                                        width, has_mass ? "    MASS" : ""),
                            style);
    out += "\n";
    for (std::size_t layer = 0; layer < layers; ++layer) {
        double const tokens = layer_tokens(session, layer);
        std::string line =
            fmt::format("{:>5}  {:>8.0f}  {}", layer, tokens, bar(tokens / most, width, style));
        if (has_mass) {
            double const mass = session.mass_kept[layer];
            line += fmt::format("  {:>7}  {}", human_share(mass), bar(mass, width, style));
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out += line + "\n";
    }
    return out;
}

}  // namespace

KeptTokens kept_tokens(wire::SessionInfoT const& session) {
    if (session.lengths.empty()) return {};
    auto const [min, max] = std::minmax_element(session.lengths.begin(), session.lengths.end());
    double const sum = std::accumulate(session.lengths.begin(), session.lengths.end(), 0.0);
    return {*min, sum / static_cast<double>(session.lengths.size()), *max};
}

double mass_kept_mean(wire::SessionInfoT const& session) {
    if (session.mass_kept.empty()) return std::numeric_limits<double>::quiet_NaN();
    return std::accumulate(session.mass_kept.begin(), session.mass_kept.end(), 0.0) /
           static_cast<double>(session.mass_kept.size());
}

std::string sessions_text(wire::SessionListT const& list, Style const& style) {
    if (list.sessions.empty())
        return "No session yet: each prompt of an attached engine is one.\n"
               "dkv instances shows who is attached.\n";
    std::vector<std::uint64_t> instances;  // In the order in which they appear.
    for (auto const& session : list.sessions)
        if (std::find(instances.begin(), instances.end(), session->instance) == instances.end())
            instances.push_back(session->instance);
    std::string out;
    for (auto const instance : instances) {
        out += (out.empty() ? "instance " : "\ninstance ") + hex_id(instance) + "\n";
        out += sessions_of(list, instance, style);
    }
    return out;
}

std::string session_text(wire::SessionInfoT const& session, Style const& style) {
    auto const share = [&](std::uint64_t bytes) {
        return bytes == 0 ? std::string("-")
                          : fmt::format("{}  ({} of full)", human_bytes(bytes),
                                        human_share(bytes, session.bytes_full));
    };
    auto const dropped = session.bytes_kept == 0 || session.bytes_full < session.bytes_kept
                             ? 0
                             : session.bytes_full - session.bytes_kept;
    std::string out = toned(Tone::Bold, "session " + hex_id(session.session), style) + "\n";
    Fields pairs{
        {"instance", hex_id(session.instance)},
        {"state", state_text(session) + ", opened " + human_duration(session.age_ms) + " ago"},
        {"policy", policy_line(session.policy.get())},
        {"prompt", fmt::format("{} tokens, {} layers, {} KV heads", session.prompt_tokens,
                               session.layers, session.kv_heads)},
        {"kept", session.lengths.empty()
                     ? std::string("-")
                     : kept_text(session) + " tokens per layer and KV head (min/mean/max)"},
        {"attention kept", mass_text(mass_kept_mean(session)) + " (mean over layers)"},
        {"full cache", human_bytes(session.bytes_full)},
        {"dropped", share(dropped)},
        {"returned", share(session.bytes_returned) + ", measured by the engine"},
        {"pool", share(session.bytes_pool) + ", blocks back in the engine's own pool"},
        {"block table", share(session.bytes_block_table) +
                            ", what a host with one table for all layers would get"},
        {"peak", share(session.bytes_peak) + ", largest during prefill"},
        {"final", share(session.bytes_final)},
        {"sidecar busy", busy_text(session.busy_ns)}};
    if (session.wait_ns > 0)
        pairs.emplace_back("sidecar waited",
                           busy_text(session.wait_ns) + ", for the engine's events");
    if (!session.error.empty())
        pairs.emplace_back("error", toned(Tone::Bad, one_line(session.error), style));
    out += fields_text(pairs, 2, style);
    if (auto const chart = layer_chart(session, style); !chart.empty()) out += "\n" + chart;
    return out;
}

}  // namespace dkv::cli
