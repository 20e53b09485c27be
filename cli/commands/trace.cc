#include "cli/render/trace.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/ids.h"
#include "cli/render/text.h"
#include "cli/text_file.h"

namespace dkv::cli {
namespace {

struct TraceOptions {
    std::string session;
    std::string out;
};

Result<Output> trace(Context const& context, TraceOptions const& options) {
    auto const id = DKV_TRY(parse_id(options.session));
    auto const controller = DKV_TRY(context.connect());
    auto const list = DKV_TRY(controller->spans(id));
    // A sidecar of before there were spans answers with every session.
    auto const found =
        std::ranges::find(list.sessions, id, [](auto const& one) { return one->session; });
    if (found == list.sessions.end())
        return Error{ErrorCode::NotFound, "no session " + hex_id(id) +
                                              " is open or remembered: dkv sessions lists them"};
    auto const& session = **found;
    if (session.spans.empty())
        return Error{ErrorCode::NotFound,
                     "session " + hex_id(id) +
                         " has no spans: it is kept whole, no layer has come, or its sidecar is of "
                         "a version without them"};
    auto json = trace_json(session);
    if (options.out.empty()) return Output{json.dump() + "\n", std::move(json)};
    DKV_TRY(write_text_file(options.out, json.dump() + "\n"));
    auto const spans = session.spans.size();
    return Output{fmt::format("{}: {} of session {}. Open it at https://ui.perfetto.dev or "
                              "chrome://tracing.\n",
                              options.out, counted(spans, "span"), hex_id(id)),
                  {{"file", options.out}, {"session", hex_id(id)}, {"spans", spans}}};
}

}  // namespace

Run setup_trace(CLI::App& app, Context const& context) {
    auto options = std::make_shared<TraceOptions>();
    app.add_option("ID", options->session, "the session, as dkv sessions and the logs show it")
        ->check(id_validator())
        ->required();
    app.add_option("-o,--out", options->out, "write it to FILE [stdout]")->type_name("FILE");
    return [&context, options] { return trace(context, *options); };
}

}  // namespace dkv::cli
