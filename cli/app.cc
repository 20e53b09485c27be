#include "cli/app.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include <fmt/format.h>

#include "cli/render/text.h"
#include "protocol/base/endpoint.h"
#include "protocol/base/version.h"

namespace dkv::cli {
namespace {

constexpr std::uint32_t kTimeoutMsMax = 600'000;

std::string dump(Json const& json) {
    // Engines name themselves: bytes that are not UTF-8 must not throw.
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

/// The (sub)command that the arguments chose, as far as they were understood.
CLI::App const* deepest(CLI::App const& app) {
    CLI::App const* chosen = &app;
    for (auto parsed = chosen->get_subcommands(); !parsed.empty();
         parsed = chosen->get_subcommands())
        chosen = parsed.front();
    return chosen;
}

/// "dkv policy set"; "" for nullptr.
std::string path_of(CLI::App const* app) {
    std::string path;
    for (; app != nullptr; app = app->get_parent())
        path = app->get_name() + (path.empty() ? "" : " " + path);
    return path;
}

/// CLI11 writes sentences over several lines; our messages are one lower-case phrase.
std::string usage_message(CLI::ParseError const& error, Program const& program) {
    CLI::App const* const chosen = deepest(program.app);
    std::string message = error.what();
    while (!message.empty() && (message.back() == '\n' || message.back() == '.'))
        message.pop_back();
    // "NAME is required" starts with what the user would type; words do not.
    if (message.size() > 1 && std::isupper(static_cast<unsigned char>(message[1])) == 0)
        message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
    // CLI11 misses the subcommand before it minds the word that stands in its place.
    auto const extras = program.app.remaining(true);
    bool const wants_command =
        !chosen->get_subcommands([](CLI::App const*) { return true; }).empty();
    if (wants_command && !extras.empty())
        message = (extras.front().starts_with("-") ? "no option '" : "no command '") +
                  extras.front() + "'";
    return fmt::format("{} (see '{} --help')", message, path_of(chosen));
}

int print_help(CLI::App const& app, Environment const& environment) {
    CLI::App const* const chosen = deepest(app);
    *environment.out << chosen->help(path_of(chosen->get_parent()));
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
      app("Shows and steers the sidecar that compresses KV caches on this machine; works on saved "
          "ones.",
          "dkv") {
    app.require_subcommand(1);
    app.fallthrough();  // Inherited: global options may follow the subcommand.
    app.footer(kExitCodesHelp);
    app.set_version_flag("--version", std::string("dkv ") + kVersion,
                         "print dkv's own version and exit");
    Globals& globals = context.globals;
    globals.endpoint = default_endpoint();
    app.add_option("--endpoint", globals.endpoint,
                   "where the sidecar listens [DKV_ENDPOINT, else " + globals.endpoint + "]")
        ->envname("DKV_ENDPOINT")
        ->type_name("ENDPOINT");
    app.add_option("--secret-key", globals.keys.secret,
                   "for a tcp:// endpoint: your key pair [dkv.key_secret where dkv keys puts it]")
        ->type_name("FILE");
    app.add_option("--sidecar-key", globals.keys.sidecar,
                   "for a tcp:// endpoint: the sidecar's public key [sidecars/HOST.key beside it]")
        ->type_name("FILE");
    app.add_flag("--json", globals.json, "print JSON: exact numbers, ids as hex strings");
    app.add_option("--timeout-ms", globals.timeout_ms, "longest wait for an answer [3000]")
        ->check(CLI::Range(1U, kTimeoutMsMax))
        ->type_name("MS");
    app.add_flag("--no-color", globals.no_color, "plain text; so does a non-empty NO_COLOR");
    for (Command const& command : commands()) {
        CLI::App* const sub = app.add_subcommand(command.name, command.summary);
        sub->footer(
            "Options of every command: --endpoint --secret-key --sidecar-key --json --timeout-ms "
            "--no-color");
        runs.emplace_back(sub, command.setup(*sub, context));
    }
}

int run(std::vector<std::string> arguments, Environment const& environment) {
    auto const* const python = arguments.empty() ? nullptr : python_command(arguments.front());
    // A profile is a file that the sidecar reads, too: showing one takes no Python.
    bool const is_ours =
        arguments.size() > 1 && arguments[0] == "profile" &&
        (arguments[1] == "show" || arguments[1] == "-h" || arguments[1] == "--help");
    if (python != nullptr && !is_ours) {
        arguments.erase(arguments.begin());
        Error const error = environment.become_python(*python, arguments);
        return refuse(environment, false, name_of(error.code), is_retryable(error.code),
                      error.message, exit_code_of(error.code));
    }
    bool const json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
    Program program(environment);
    program.context.globals.arguments = arguments;
    std::reverse(arguments.begin(), arguments.end());  // CLI11 pops them from the back.
    try {
        program.app.parse(std::move(arguments));
    } catch (CLI::CallForHelp const&) {
        return print_help(program.app, environment);
    } catch (CLI::CallForVersion const& version) {
        *environment.out << version.what() << '\n';
        return kExitOk;
    } catch (CLI::ParseError const& error) {
        return refuse(environment, json, "usage", false, usage_message(error, program), kExitUsage);
    }
    if (auto const good = check_endpoint(program.context.globals.endpoint); !good)
        return refuse(environment, json, "usage", false, good.error().message, kExitUsage);
    return run_chosen(program, environment);
}

}  // namespace dkv::cli
