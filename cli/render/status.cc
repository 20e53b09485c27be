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
    constexpr std::size_t kIndent = 12;
    std::size_t const width = style.columns - kIndent;
    std::string const errors =
        status.errors_total == 0
            ? std::string("none")
            : toned(Tone::Warn, fmt::format("{}; the last: ", status.errors_total), style) +
                  wrapped(one_line(status.last_error), width - 16, kIndent);
    std::string out = fields(
        {{"sidecar", fmt::format("{} dkvd {}, protocol {}, pid {}, up {}",
                                 toned(Tone::Good, "running:", style), one_line(status.version),
                                 status.protocol, status.pid, human_duration(status.uptime_ms))},
         {"endpoint", one_line(status.endpoint)},
         {"backend",
          fmt::format("{}, {}", one_line(status.backend), counted(status.threads, "thread"))},
         {"policy", wrapped(policy_line(status.policy.get()) +
                                (status.policy_source.empty()
                                     ? std::string()
                                     : " (from: " + one_line(status.policy_source) + ")"),
                            width, kIndent)},
         {"engines", fmt::format("{} attached, {} mapped", status.instances,
                                 human_bytes(status.mapped_bytes))},
         {"sessions", fmt::format("{} open", status.sessions_open)},
         {"savings", savings_brief(status.savings.get())},
         {"errors", errors}});
    for (auto const& line : status.gone)
        out += "gone        " + toned(Tone::Warn, wrapped(one_line(line), width, kIndent), style) +
               "\n";
    auto const brief = instances_brief(instances, style);
    return out + "\n" + (brief.empty() ? no_engine_text() : brief);
}

}  // namespace dkv::cli
