#include "cli/app.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include <fmt/format.h>

#include "cli/render/text.h"
#include "protocol/base/endpoint.h"

namespace dkv::cli {
namespace {

constexpr std::uint32_t kTimeoutMsMax = 600'000;

std::string dump(Json const& json) {
    // Engines name themselves: bytes that are no UTF-8 must not throw.
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// One line on stderr; under --json also an object on stdout, so that a script reads one stream.
int refuse(Environment const& environment,
           bool json,
           std::string_view code,
           bool retryable,
           std::string const& message,
           int exit_code) {
    *environment.err << "dkv: " << one_line(message) << "\n";
    if (json)
        *environment.out << dump(
            {{"error", {{"code", code}, {"retryable", retryable}, {"message", message}}}});
    return exit_code;
}

/// CLI11 writes sentences over several lines; our messages are one lower-case phrase.
std::string usage_message(CLI::ParseError const& error, Program const& program) {
    std::string message = error.what();
    while (!message.empty() && (message.back() == '\n' || message.back() == '.'))
        message.pop_back();
    // "--json …" and "NAME is required" start with what the user would type; words do not.
    if (message.size() > 1 && std::islower(static_cast<unsigned char>(message[1])) != 0)
        message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
    std::string path = "dkv";
    CLI::App const* app = &program.app;
    for (auto parsed = app->get_subcommands(); !parsed.empty(); parsed = app->get_subcommands()) {
        app = parsed.front();
        path += " " + app->get_name();
    }
    return fmt::format("{} (see '{} --help')", message, path);
}

int print_help(CLI::App const& app, Environment const& environment) {
    CLI::App const* deepest = &app;
    for (auto parsed = deepest->get_subcommands(); !parsed.empty();
         parsed = deepest->get_subcommands())
        deepest = parsed.front();
    std::string name;
    for (CLI::App const* part = deepest; part != nullptr; part = part->get_parent())
        name = part->get_name() + (name.empty() ? "" : " " + name);
    // App::help prints the program's own part of the usage line itself when it is the root.
    *environment.out << deepest->help(deepest == &app ? "" : name);
    return kExitOk;
}

int run_chosen(Program& program, Environment const& environment) {
    for (auto const& [sub, command] : program.runs) {
        if (!sub->parsed()) continue;
        auto const output = command();
        if (!output) {
            Error const& error = output.error();
            return refuse(environment, program.context.globals.json, name_of(error.code),
                          is_retryable(error.code), error.message, exit_code_of(error.code));
        }
        if (!program.context.globals.json)
            *environment.out << output.value().text;
        else if (!output.value().json.is_null())
            *environment.out << dump(output.value().json);
        environment.out->flush();
        return output.value().exit_code;
    }
    return kExitUsage;
}

}  // namespace

Program::Program(Environment const& environment)
    : context{environment, {}},
      app("Shows and steers the sidecar that compresses KV caches on this machine.", "dkv") {
    app.require_subcommand(1);
    app.fallthrough();  // Inherited: global options may follow the subcommand.
    app.footer(kExitCodesHelp);
    Globals& globals = context.globals;
    globals.endpoint = default_endpoint();
    app.add_option("--endpoint", globals.endpoint,
                   "where the sidecar listens [DKV_ENDPOINT, else " + globals.endpoint + "]")
        ->type_name("ENDPOINT");
    app.add_flag("--json", globals.json, "print JSON: exact numbers, ids as hex strings");
    app.add_option("--timeout-ms", globals.timeout_ms, "longest wait for an answer [3000]")
        ->check(CLI::Range(1U, kTimeoutMsMax))
        ->type_name("MS");
    app.add_flag("--no-color", globals.no_color, "plain text; so does a non-empty NO_COLOR");
    for (Command const& command : commands()) {
        CLI::App* const sub = app.add_subcommand(command.name, command.summary);
        sub->footer("Options of every command: --endpoint --json --timeout-ms --no-color");
        runs.emplace_back(sub, command.setup(*sub, context));
    }
}

int run(std::vector<std::string> arguments, Environment const& environment) {
    bool const json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
    Program program(environment);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 pops them from the back.
    try {
        program.app.parse(std::move(arguments));
    } catch (CLI::CallForHelp const&) {
        return print_help(program.app, environment);
    } catch (CLI::ParseError const& error) {
        return refuse(environment, json, "usage", false, usage_message(error, program), kExitUsage);
    }
    if (auto const good = check_endpoint(program.context.globals.endpoint); !good)
        return refuse(environment, json, "usage", false, good.error().message, kExitUsage);
    return run_chosen(program, environment);
}

}  // namespace dkv::cli
