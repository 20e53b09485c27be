#include "cli/python.h"

#include <fmt/format.h>

#include "cli/commands/all.h"

namespace dkv::cli {
namespace {

/// app.cc hands these over before it parses anything; what comes here stood behind a global option.
Run set_up_for_help(CLI::App& app) {
    app.fallthrough(false);
    app.allow_extras();
    app.callback([name = app.get_name()] {
        throw CLI::ValidationError(fmt::format("options go behind the command: dkv {} …", name));
    });
    return [] { return Output{}; };
}

}  // namespace

Run setup_calibrate(CLI::App& app, Context const& /*context*/) {
    return set_up_for_help(app);
}

Run setup_capture(CLI::App& app, Context const& /*context*/) {
    return set_up_for_help(app);
}

Run setup_certify(CLI::App& app, Context const& /*context*/) {
    return set_up_for_help(app);
}

Run setup_report(CLI::App& app, Context const& /*context*/) {
    return set_up_for_help(app);
}

Run setup_eval(CLI::App& app, Context const& /*context*/) {
    return set_up_for_help(app);
}

}  // namespace dkv::cli
