#include "cli/commands/all.h"
#include "sidecar/config/config_file.h"

namespace dkv::cli {
namespace {

/// `dkv --endpoint X serve`: the option before the command is the program's, not the daemon's.
void complete(Config& config, Context const& context) {
    if (config.endpoint.empty()) config.endpoint = context.globals.endpoint;
    if (config.secret_key_file.empty()) config.secret_key_file = context.globals.keys.secret;
}

}  // namespace

Run setup_serve(CLI::App& app, Context const& context) {
    auto config = std::make_shared<Config>();
    context.environment.add_daemon_flags(app, *config);
    return [&app, &context, config]() -> Result<Output> {
        complete(*config, context);
        DKV_TRY(finish(app, *config));
        auto const again = [&context]() -> Result<Config> {
            auto read = DKV_TRY(read_config(context.globals.arguments));
            complete(read, context);
            return read;
        };
        DKV_TRY(context.environment.run_daemon(*config, again));
        return Output{};
    };
}

}  // namespace dkv::cli
