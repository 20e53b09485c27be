#include "cli/commands/all.h"

namespace dkv::cli {

Run setup_serve(CLI::App& app, Context const& context) {
    auto config = std::make_shared<Config>();
    context.environment.add_daemon_flags(app, *config);
    return [&context, config]() -> Result<Output> {
        // `dkv --endpoint X serve`: the option before the command is the program's, not the
        // daemon's.
        if (config->endpoint.empty()) config->endpoint = context.globals.endpoint;
        if (config->secret_key_file.empty()) config->secret_key_file = context.globals.keys.secret;
        DKV_TRY(context.environment.run_daemon(*config));
        return Output{};
    };
}

}  // namespace dkv::cli
