#include "cli/commands/all.h"
#include "sidecar/config/config_file.h"

namespace dkv::cli {
namespace {

/// `dkv --endpoint X serve`, or X in the environment: it goes before the file, and behind the
/// daemon's own flag.
bool given_before(CLI::App const& app, char const* name) {
    auto const* const own = app.get_option_no_throw(name);
    auto const* const before = app.get_parent()->get_option_no_throw(name);
    return (own == nullptr || own->count() == 0) && before != nullptr && before->count() > 0;
}

}  // namespace

Run setup_serve(CLI::App& app, Context const& context) {
    auto config = std::make_shared<Config>();
    context.environment.add_daemon_flags(app, *config);
    // From the environment it would go before the flag that stands before the command.
    if (auto* const endpoint = app.get_option_no_throw("--endpoint")) endpoint->envname("");
    return [&app, &context, config]() -> Result<Output> {
        bool const endpoint = given_before(app, "--endpoint");
        bool const key = given_before(app, "--secret-key");
        auto const complete = [&context, endpoint, key](Config& read) {
            auto const& globals = context.globals;
            if (endpoint || read.endpoint.empty()) read.endpoint = globals.endpoint;
            if (key || read.secret_key_file.empty()) read.secret_key_file = globals.keys.secret;
            return check(read);
        };
        static_cast<void>(complete(*config));  // finish() checks it together with the file.
        DKV_TRY(finish(app, *config));
        DKV_TRY(complete(*config));
        auto const again = [&context, complete]() -> Result<Config> {
            auto read = DKV_TRY(read_config(context.globals.arguments));
            DKV_TRY(complete(read));
            return read;
        };
        DKV_TRY(context.environment.run_daemon(*config, again));
        return Output{};
    };
}

}  // namespace dkv::cli
