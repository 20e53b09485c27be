#include "cli/render/status.h"

#include <fmt/format.h>

#include "cli/render/instances.h"
#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {

std::string status_text(wire::StatusInfoT const& status,
                        wire::InstanceListT const& instances,
                        Style const& style) {
    std::string const source =
        status.policy_source.empty() ? "" : " (from: " + one_line(status.policy_source) + ")";
    Fields fields{
        {"sidecar", fmt::format("{} dkvd {}, protocol {}, pid {}, up {}",
                                toned(Tone::Good, "running:", style), one_line(status.version),
                                status.protocol, status.pid, human_duration(status.uptime_ms))},
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
