#include "cli/render/savings.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using Align = Column::Align;

constexpr std::size_t kSavingsSessionsShown = 10;
constexpr std::size_t kLayersPerLine = 10;

std::string total_text(wire::SavingsT const& total, Style const& style) {
    auto const row = [&](char const* name, std::uint64_t bytes, char const* means) {
        return std::vector<std::string>{name, human_bytes(bytes),
                                        human_share(bytes, total.bytes_full), means};
    };
    Table table({{"BYTES"}, {"", Align::Right}, {"OF FULL", Align::Right}, {"WHAT IT SAYS"}});
    table.add(row("full caches", total.bytes_full, "what all prompts would have taken"));
    table.add(row("dropped", total.bytes_dropped, "rows not kept, over all layers: logical"));
    table.add(row("returned", total.bytes_returned, "what the system took back: measured"));
    table.add(row("pool", total.bytes_pool, "blocks back in engines' own pools: as they count"));
    table.add(
        row("block table", total.bytes_block_table, "what one table for all layers would give"));
    return fmt::format("{}, {} failed, {} prompt tokens; the sidecar was busy for {}\n\n",
                       counted(total.sessions, "session"), total.sessions_failed,
                       total.prompt_tokens, human_duration(total.busy_ns / 1'000'000)) +
           table.text(style) +
           fmt::format("\nLargest cache of one session during prefill: {}\n",
                       human_bytes(total.bytes_peak));
}

std::string instances_table(wire::SavingsInfoT const& savings, Style const& style) {
    Table table({{"INSTANCE"},
                 {"SESSIONS", Align::Right},
                 {"FULL", Align::Right},
                 {"DROPPED", Align::Right},
                 {"RETURNED", Align::Right},
                 {"BLOCK TABLE", Align::Right},
                 {"PEAK", Align::Right}});
    for (auto const& item : savings.instances) {
        if (!item->savings) continue;
        auto const& s = *item->savings;
        table.add({hex_id(item->instance), std::to_string(s.sessions), human_bytes(s.bytes_full),
                   human_bytes(s.bytes_dropped), human_bytes(s.bytes_returned),
                   human_bytes(s.bytes_block_table), human_bytes(s.bytes_peak)});
    }
    return table.empty() ? std::string() : "\n" + table.text(style);
}

std::string sessions_table(wire::SavingsInfoT const& savings, Style const& style) {
    Table table({{"SESSION"},
                 {"POLICY"},
                 {"FULL", Align::Right},
                 {"PEAK", Align::Right},
                 {"FINAL", Align::Right},
                 {"DROPPED", Align::Right},
                 {"RETURNED", Align::Right}});
    auto const& all = savings.sessions;
    auto const first = all.size() > kSavingsSessionsShown ? all.size() - kSavingsSessionsShown : 0;
    for (std::size_t index = first; index < all.size(); ++index) {
        auto const& s = *all[index];
        auto const dropped =
            s.bytes_kept == 0 || s.bytes_kept > s.bytes_full ? 0 : s.bytes_full - s.bytes_kept;
        table.add({hex_id(s.session), policy_brief(s.policy.get()), human_bytes(s.bytes_full),
                   human_bytes(s.bytes_peak), human_bytes(s.bytes_final), human_bytes(dropped),
                   human_bytes(s.bytes_returned)});
    }
    if (table.empty()) return {};
    std::string const title = first == 0
                                  ? std::string("Sessions")
                                  : fmt::format("The last {} sessions", kSavingsSessionsShown);
    return fmt::format("\n{}: peak during prefill beside what is left\n{}", title,
                       table.text(style));
}

std::string mass_text(wire::SavingsInfoT const& savings, std::uint64_t instance) {
    auto const mass = mass_per_layer(savings, instance);
    if (mass.empty()) return {};
    std::string out = fmt::format(
        "\nAttention kept per layer, percent, mean of the sessions of {}\n", hex_id(instance));
    for (std::size_t first = 0; first < mass.size(); first += kLayersPerLine) {
        out += fmt::format("  {:>4}:", first);
        for (std::size_t layer = first; layer < std::min(first + kLayersPerLine, mass.size());
             ++layer)
            out += fmt::format(" {:>6.1f}", mass[layer] * 100);
        out += "\n";
    }
    return out;
}

}  // namespace

std::vector<double> mass_per_layer(wire::SavingsInfoT const& savings, std::uint64_t instance) {
    std::vector<double> sums;
    std::size_t count = 0;
    for (auto const& session : savings.sessions) {
        if (session->instance != instance || session->mass_kept.empty()) continue;
        sums.resize(std::max(sums.size(), session->mass_kept.size()));
        for (std::size_t layer = 0; layer < session->mass_kept.size(); ++layer)
            sums[layer] += session->mass_kept[layer];
        ++count;
    }
    for (double& sum : sums)
        sum /= static_cast<double>(count);
    return sums;
}

std::string given_back(wire::SavingsT const& savings) {
    auto text = human_bytes(savings.bytes_returned) + " returned (measured)";
    if (savings.bytes_pool > 0)
        text += ", " + human_bytes(savings.bytes_pool) + " back in engines' pools";
    return text;
}

std::string savings_brief(wire::SavingsT const* savings) {
    if (savings == nullptr || savings->sessions == 0) return "none yet: no session has finished";
    return fmt::format("{} dropped, {}, of {} in {}", human_bytes(savings->bytes_dropped),
                       given_back(*savings), human_bytes(savings->bytes_full),
                       counted(savings->sessions, "session"));
}

std::string savings_text(wire::SavingsInfoT const& savings, Style const& style) {
    if (!savings.total || savings.total->sessions == 0)
        return "Nothing saved yet: no session has finished.\n"
               "dkv status shows whether an engine is attached, dkv watch what happens.\n";
    std::string out = total_text(*savings.total, style);
    out += instances_table(savings, style);
    out += sessions_table(savings, style);
    std::set<std::uint64_t> instances;
    for (auto const& session : savings.sessions)
        instances.insert(session->instance);
    for (auto const instance : instances)
        out += mass_text(savings, instance);
    return out;
}

}  // namespace dkv::cli
