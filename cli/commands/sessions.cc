#include "cli/render/sessions.h"

#include <algorithm>

#include "cli/commands/all.h"
#include "cli/ids.h"
#include "cli/render/json.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

struct SessionsOptions {
    std::string session;
    std::string instance;
};

/// The sessions with this id: more than one only when two engines chose the same one.
Result<wire::SessionListT> matching(wire::SessionListT list, std::string const& text) {
    auto const id = DKV_TRY(parse_id(text));
    std::erase_if(list.sessions, [&](auto const& session) { return session->session != id; });
    if (list.sessions.empty())
        return Error{ErrorCode::NotFound, "no session " + hex_id(id) +
                                              " is open or remembered: dkv sessions lists them"};
    return list;
}

Result<Output> show(Context const& context, SessionsOptions const& options) {
    std::uint64_t const instance =
        options.instance.empty() ? 0 : DKV_TRY(parse_id(options.instance));
    auto const controller = DKV_TRY(context.connect());
    auto list = DKV_TRY(controller->sessions(instance));
    if (options.session.empty())
        return Output{sessions_text(list, context.style()), {{"sessions", to_json(list.sessions)}}};
    auto const found = DKV_TRY(matching(std::move(list), options.session));
    std::string text;
    for (auto const& session : found.sessions)
        text += (text.empty() ? "" : "\n") + session_text(*session, context.style());
    return Output{text, {{"sessions", to_json(found.sessions)}}};
}

}  // namespace

Run setup_sessions(CLI::App& app, Context const& context) {
    auto options = std::make_shared<SessionsOptions>();
    app.add_option("ID", options->session, "show this session in detail, with bars per layer")
        ->check(id_validator());
    app.add_option("--instance", options->instance, "only the sessions of this engine")
        ->check(id_validator())
        ->type_name("ID");
    return [&context, options] { return show(context, *options); };
}

}  // namespace dkv::cli
