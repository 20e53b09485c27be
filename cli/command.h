// A subcommand: its name, its flags, and what it does. One file in commands/ for each.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/doctor/readings.h"
#include "cli/exit_codes.h"
#include "cli/python.h"
#include "cli/render/style.h"
#include "protocol/base/result.h"
#include "protocol/sdk/controller.h"
#include "sidecar/config/config.h"

namespace dkv::cli {

using Json = nlohmann::ordered_json;

/// What a command touches beyond its own flags. main.cc fills in the real world, tests a fake one.
struct Environment {
    std::function<Result<std::unique_ptr<sdk::Controller>>(
        std::string, std::chrono::milliseconds, sdk::KeyFiles const&)>
        connect;
    std::function<void(CLI::App&, Config&)> add_daemon_flags;
    /// The second one reads the configuration again.
    std::function<Result<void>(Config const&, std::function<Result<Config>()> const&)> run_daemon;
    std::function<doctor::Readings(std::string const& endpoint)> read_machine;
    /// From now on Ctrl-C does not kill; what comes back says whether it was pressed.
    std::function<std::function<bool()>()> catch_interrupts;
    std::function<void(std::chrono::milliseconds)> pause;
    std::ostream* out = nullptr;
    std::ostream* err = nullptr;
    bool out_is_terminal = false;
    bool err_is_terminal = false;
    /// Becomes Python running that command; comes back only with a reason.
    std::function<Error(PythonCommand const&, std::vector<std::string> const& arguments)>
        become_python;
    Style style;  ///< What the terminal can show; --no-color takes the colour away.
    /// The same now: a window may have been resized. Empty: as `style`.
    std::function<Style()> style_now;
};

/// The options that every command accepts, before or after its name.
struct Globals {
    std::string endpoint;  ///< Never empty once parsed.
    sdk::KeyFiles keys;    ///< Of a tcp:// endpoint.
    bool json = false;
    bool no_color = false;
    std::uint32_t timeout_ms = 3000;
    std::vector<std::string> arguments;  ///< The whole command line, in its order.
};

/// Lives as long as the CLI::App: commands may keep a reference.
struct Context {
    Environment const& environment;
    Globals globals;

    Result<std::unique_ptr<sdk::Controller>> connect() const {
        return environment.connect(globals.endpoint, std::chrono::milliseconds(globals.timeout_ms),
                                   globals.keys);
    }
    Style style() const {
        Style style = environment.style_now ? environment.style_now() : environment.style;
        if (globals.no_color) style.color = false;
        return style;
    }
};

/// What a command prints: `text` for people, or the same facts as JSON under --json.
struct Output {
    std::string text;
    Json json;  ///< null: nothing is printed under --json either.
    int exit_code = kExitOk;
};

using Run = std::function<Result<Output>()>;

struct Command {
    char const* name;
    char const* summary;
    /// Adds this command's flags to `app`; returns what to run once they are parsed.
    Run (*setup)(CLI::App& app, Context const& context);
};

/// Every command, in the order --help lists them.
std::span<Command const> commands();

}  // namespace dkv::cli
