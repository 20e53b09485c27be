#include "cli/render/instances.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using Align = Column::Align;

std::string or_dash(std::string const& text) {
    return text.empty() ? "-" : one_line(text);
}

std::string geometry_text(wire::GeometryT const* geometry) {
    if (geometry == nullptr) return "-";
    return fmt::format("{}, {}/{} heads, head_dim {}, {}", counted(geometry->layers, "layer"),
                       geometry->q_heads, geometry->kv_heads, geometry->head_dim,
                       lower(EnumNameDtype(geometry->dtype)));
}

std::string savings_line(wire::SavingsT const* savings) {
    if (savings == nullptr || savings->sessions == 0) return "no session finished yet";
    return fmt::format("{} dropped, {}, of {}", human_bytes(savings->bytes_dropped),
                       given_back(*savings), human_bytes(savings->bytes_full));
}

std::string one_instance(wire::InstanceInfoT const& item, Style const& style) {
    std::string const alive =
        item.alive ? toned(Tone::Good, "alive", style) : toned(Tone::Bad, "gone", style);
    std::string out = fmt::format("{}  pid {}, {}, attached {} ago, last heard {} ago\n",
                                  toned(Tone::Bold, hex_id(item.instance), style), item.pid, alive,
                                  human_duration(item.attached_ms), human_duration(item.idle_ms));
    Fields pairs{
        {"engine",
         or_dash(item.engine) + (item.device.empty() ? "" : " on " + one_line(item.device))},
        {"model", or_dash(item.model)},
        {"geometry", geometry_text(item.geometry.get())},
        {"policy", policy_line(item.policy.get()) + " (from: " + or_dash(item.policy_source) + ")"},
        {"sessions", fmt::format("{} open, {} in all, {} failed", item.sessions_open,
                                 item.sessions_total, item.sessions_failed)},
        {"mapped",
         fmt::format("{} in {}", human_bytes(item.mapped_bytes), counted(item.regions, "region"))},
        {"savings", savings_line(item.savings.get())}};
    if (!item.backend.empty()) pairs.emplace_back("backend", one_line(item.backend));
    if (item.generation > 1)
        pairs.emplace_back("attached",
                           fmt::format("{} times: it came back by itself", item.generation));
    if (item.group != 0) pairs.emplace_back("group", hex_id(item.group));
    if (!item.last_error.empty())
        pairs.emplace_back("error", toned(Tone::Bad, one_line(item.last_error), style));
    return out + fields_text(pairs, 2, style);
}

}  // namespace

std::string no_engine_text() {
    return "No engine is attached. Start one with: python -m dkv.hf SCRIPT\n"
           "(or dkv.hf.Cache(model) in your own code, or libdkv from C).\n";
}

std::string instances_text(wire::InstanceListT const& list, Style const& style) {
    if (list.instances.empty()) return no_engine_text();
    std::string out;
    for (auto const& item : list.instances)
        out += (out.empty() ? "" : "\n") + one_instance(*item, style);
    return out;
}

std::string instances_brief(wire::InstanceListT const& list, Style const& style) {
    if (list.instances.empty()) return {};
    constexpr std::size_t kWide = 100;
    constexpr std::size_t kOtherColumns = 65;
    bool const wide = style.columns >= kWide;  // Else the model alone tells the engines apart.
    std::size_t const room = wide ? 22 : std::max(style.columns, kOtherColumns + 8) - kOtherColumns;
    std::vector<Column> columns{{"INSTANCE"}, {"PID", Align::Right}};
    if (wide) columns.push_back({"ENGINE"});
    columns.insert(columns.end(),
                   {{"MODEL"}, {"POLICY"}, {"OPEN", Align::Right}, {"MAPPED", Align::Right}});
    Table table(std::move(columns));
    for (auto const& item : list.instances) {
        std::vector<std::string> cells{hex_id(item->instance), std::to_string(item->pid)};
        if (wide) cells.push_back(shortened(or_dash(item->engine), 20, style));
        cells.push_back(shortened(or_dash(item->model), room, style));
        cells.push_back(item->alive ? policy_brief(item->policy.get()) : "gone");
        cells.push_back(std::to_string(item->sessions_open));
        cells.push_back(human_bytes(item->mapped_bytes));
        table.add(std::move(cells));
    }
    return table.text(style);
}

}  // namespace dkv::cli
