#include "cli/render/status.h"

#include <fmt/format.h>

#include "cli/render/instances.h"
#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {

namespace {

std::string cell(std::string_view text) {
    return csv_cell(one_line(text));
}

std::string csv_numbers(wire::SavingsT const& savings) {
    return fmt::format("{},{},{},{},{},{},{},{},{}", savings.sessions, savings.sessions_failed,
                       savings.prompt_tokens, savings.bytes_full, savings.bytes_dropped,
                       savings.bytes_returned, savings.bytes_pool, savings.bytes_block_table,
                       savings.bytes_peak);
}

}  // namespace

std::string status_csv(wire::StatusInfoT const& status, wire::InstanceListT const& instances) {
    wire::SavingsT const none;
    auto const numbers = [&](auto const& savings) {
        return csv_numbers(savings ? *savings : none);
    };
    auto const policy = [](auto const& chosen) { return cell(chosen ? chosen->name : ""); };
    std::string out =
        "instance,pid,alive,engine,model,policy,sessions_open,mapped_bytes,sessions,sessions_"
        "failed,"
        "prompt_tokens,bytes_full,bytes_dropped,bytes_returned,bytes_pool,bytes_block_table,"
        "bytes_peak\n";
    out += fmt::format("all,{},1,{},,{},{},{},{}\n", status.pid, cell("dkvd " + status.version),
                       policy(status.policy), status.sessions_open, status.mapped_bytes,
                       numbers(status.savings));
    for (auto const& item : instances.instances)
        out += fmt::format("{},{},{},{},{},{},{},{},{}\n", hex_id(item->instance), item->pid,
                           item->alive ? 1 : 0, cell(item->engine), cell(item->model),
                           policy(item->policy), item->sessions_open, item->mapped_bytes,
                           numbers(item->savings));
    return out;
}

std::string status_text(wire::StatusInfoT const& status,
                        wire::InstanceListT const& instances,
                        Style const& style) {
    std::string const source =
        status.policy_source.empty() ? "" : " (from: " + one_line(status.policy_source) + ")";
    Fields fields{
        {"sidecar", fmt::format("{} dkvd {}, protocol {}, pid {}, up {}",
                                status.draining ? toned(Tone::Warn, "draining:", style)
                                                : toned(Tone::Good, "running:", style),
                                one_line(status.version), status.protocol, status.pid,
                                human_duration(status.uptime_ms))},
        {"endpoint", one_line(status.endpoint)},
        {"backend",
         one_line(status.backend) +
             (status.backend_note.empty() ? std::string() : "; " + one_line(status.backend_note))},
        {"policy", policy_line(status.policy.get()) + source},
        {"engines",
         fmt::format("{} attached, {} mapped", status.instances, human_bytes(status.mapped_bytes))},
        {"sessions", fmt::format("{} open", status.sessions_open)},
        {"savings", savings_brief(status.savings.get())},
        {"errors", status.errors_total == 0
                       ? std::string("none")
                       : fmt::format("{}; the last: {}",
                                     toned(Tone::Warn, std::to_string(status.errors_total), style),
                                     one_line(status.last_error))}};
    for (auto const& line : status.gone)
        fields.emplace_back("gone", toned(Tone::Warn, one_line(line), style));
    std::string const out = fields_text(fields, 0, style);
    auto const brief = instances_brief(instances, style);
    return out + "\n" + (brief.empty() ? no_engine_text() : brief);
}

}  // namespace dkv::cli
