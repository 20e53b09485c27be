#include "cli/render/trace.h"

#include <algorithm>
#include <string>

#include "cli/render/text.h"

namespace dkv::cli {

using Json = nlohmann::ordered_json;

Json trace_json(wire::SessionInfoT const& session) {
    constexpr int kProcess = 1;
    constexpr int kThread = 1;
    Json events = Json::array();
    auto const name = [&](char const* what, std::string const& text) {
        events.push_back({{"name", what},
                          {"ph", "M"},
                          {"pid", kProcess},
                          {"tid", kThread},
                          {"args", {{"name", text}}}});
    };
    name("process_name", "dkvd, session " + hex_id(session.session));
    name("thread_name", "worker of engine " + hex_id(session.instance));
    auto const earliest =
        std::min_element(session.spans.begin(), session.spans.end(),
                         [](auto const& a, auto const& b) { return a.begin_ns() < b.begin_ns(); });
    for (auto const& span : session.spans) {
        Json event{{"name", lower(EnumNameStage(span.stage()))},
                   {"cat", "dkv"},
                   {"ph", "X"},
                   {"ts", static_cast<double>(span.begin_ns() - earliest->begin_ns()) * 1e-3},
                   {"dur", static_cast<double>(span.duration_ns()) * 1e-3},
                   {"pid", kProcess},
                   {"tid", kThread}};
        event["args"] = Json::object();
        if (span.layer() >= 0) event["args"]["layer"] = span.layer();
        events.push_back(std::move(event));
    }
    return {{"traceEvents", std::move(events)},
            {"displayTimeUnit", "ms"},
            {"otherData",
             {{"instance", hex_id(session.instance)},
              {"session", hex_id(session.session)},
              {"state", lower(EnumNameSessionState(session.state))},
              {"prompt_tokens", session.prompt_tokens},
              {"policy", session.policy ? session.policy->name : std::string()},
              {"error", session.error}}}};
}

}  // namespace dkv::cli
