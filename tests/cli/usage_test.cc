// Wrong usage, failed requests, and what the exit status says of them.
#include <cstdlib>
#include <fstream>

#include <doctest/doctest.h>

#include "protocol/base/endpoint.h"
#include "sidecar/config/config.h"
#include "sidecar/policy/policy.h"
#include "tests/cli/fakes.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using dkv::test::FakeSidecar;
using dkv::test::run_dkv;

namespace {

std::size_t lines_of(std::string const& text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

FakeSidecar absent() {
    FakeSidecar sidecar;
    sidecar.fail = Error{ErrorCode::Unavailable, "no sidecar listens at ipc:///tmp/x/dkvd.sock"};
    return sidecar;
}

}  // namespace

TEST_CASE("dkv: every command that needs a sidecar exits 3 with one line when there is none") {
    using Arguments = std::vector<std::string>;
    for (auto const& arguments :
         {Arguments{"status"}, Arguments{"instances"}, Arguments{"sessions"},
          Arguments{"sessions", "1"}, Arguments{"savings"}, Arguments{"policy", "set", "snapkv"},
          Arguments{"policy", "reset"}, Arguments{"stop"},
          Arguments{"completion", "--words", "instances"}}) {
        CAPTURE(arguments);
        auto sidecar = absent();

        auto const ran = run_dkv(arguments, sidecar);

        CHECK(ran.exit_code == 3);
        CHECK(ran.err == "dkv: no sidecar listens at ipc:///tmp/x/dkvd.sock\n");
        CHECK(ran.out.empty());
    }
}

TEST_CASE("dkv policy list and show NAME know their own policies where no sidecar answers") {
    auto sidecar = absent();

    auto const list = run_dkv({"policy", "list"}, sidecar);
    auto const shown = run_dkv({"policy", "show", "snapkv"}, sidecar);
    auto const json = cli::Json::parse(run_dkv({"policy", "list", "--json"}, sidecar).out);
    auto const words = run_dkv({"completion", "--words", "policies"}, sidecar);

    CHECK(list.exit_code == 0);
    CHECK(list.err.empty());
    CHECK(test::contains(list.out, "  snapkv "));
    CHECK(test::contains(list.out, "capacity=512 window=32 kernel=7"));
    CHECK(test::contains(list.out, "These are the defaults of this dkv: no sidecar listens at"));
    CHECK(shown.exit_code == 0);
    CHECK(test::contains(shown.out, "--kernel\n"));
    CHECK(test::contains(shown.out, "    value   512\n"));
    CHECK(json.at("default").is_null());
    CHECK(json.at("policies").size() == policies().size());
    CHECK(words.exit_code == 0);
    CHECK(lines_of(words.out) == policies().size());
}

TEST_CASE("dkv policy show asks for a name where no sidecar answers") {
    auto sidecar = absent();

    auto const in_force = run_dkv({"policy", "show"}, sidecar);
    auto const unknown = run_dkv({"policy", "show", "snapvk"}, sidecar);

    CHECK(in_force.exit_code == 3);
    CHECK(in_force.err ==
          "dkv: no sidecar listens at ipc:///tmp/x/dkvd.sock; dkv policy show NAME needs no "
          "sidecar\n");
    CHECK(unknown.exit_code == 1);
    CHECK(unknown.err.starts_with("dkv: no policy 'snapvk'; there are auto, fullkv, "));
}

TEST_CASE("dkv policy list does not hide a sidecar that answers with a refusal") {
    auto sidecar = absent();

    sidecar.fail = Error{ErrorCode::VersionMismatch, "it speaks 2, not 1"};
    CHECK(run_dkv({"policy", "list"}, sidecar).exit_code == 4);
    sidecar.fail->code = ErrorCode::LimitExceeded;
    CHECK(run_dkv({"policy", "list"}, sidecar).exit_code == 1);
}

TEST_CASE("dkv: a silent sidecar is no sidecar, another version's is exit 4, a bug is exit 70") {
    auto sidecar = absent();

    sidecar.fail->code = ErrorCode::DeadlineExceeded;
    CHECK(run_dkv({"status"}, sidecar).exit_code == 3);
    sidecar.fail->code = ErrorCode::VersionMismatch;
    CHECK(run_dkv({"status"}, sidecar).exit_code == 4);
    sidecar.fail->code = ErrorCode::Internal;
    CHECK(run_dkv({"status"}, sidecar).exit_code == 70);
    sidecar.fail->code = ErrorCode::LimitExceeded;
    CHECK(run_dkv({"status"}, sidecar).exit_code == 1);
}

TEST_CASE("dkv: under --json a failure is an object on stdout beside the line on stderr") {
    auto sidecar = absent();

    auto const ran = run_dkv({"status", "--json"}, sidecar);

    CHECK(ran.err == "dkv: no sidecar listens at ipc:///tmp/x/dkvd.sock\n");
    auto const error = cli::Json::parse(ran.out).at("error");
    CHECK(error.at("code") == "unavailable");
    CHECK(error.at("retryable") == true);
    CHECK(error.at("message") == "no sidecar listens at ipc:///tmp/x/dkvd.sock");
}

TEST_CASE("dkv: a message of several lines or with control characters still is one line") {
    FakeSidecar sidecar;
    sidecar.fail = Error{ErrorCode::NotFound, "bad\nname \x1b[31mred"};

    auto const ran = run_dkv({"status"}, sidecar);

    CHECK(ran.err == "dkv: bad name ?[31mred\n");
}

TEST_CASE("dkv: wrong usage exits 2 with one line that says where help is") {
    struct Case {
        std::vector<std::string> arguments;
        std::string message;
    };
    for (auto const& [arguments, message] : {
             Case{{}, "a subcommand is required (see 'dkv --help')"},
             Case{{"--bogus"}, "no option '--bogus' (see 'dkv --help')"},
             Case{{"policy", "lst"}, "no command 'lst' (see 'dkv policy --help')"},
             Case{{"statsu"}, "no command 'statsu' (see 'dkv --help')"},
             Case{{"policy", "lst"}, "no command 'lst' (see 'dkv policy --help')"},
             Case{{"status", "--bogus"},
                  "the following argument was not expected: --bogus (see 'dkv status --help')"},
             Case{{"sessions", "xyz"},
                  "ID: 'xyz' is not an id: up to 16 hexadecimal digits, not all 0 "
                  "(see 'dkv sessions --help')"},
             Case{{"sessions", "0"},
                  "ID: '0' is not an id: up to 16 hexadecimal digits, not all 0 "
                  "(see 'dkv sessions --help')"},
             Case{{"policy", "set"},
                  "NAME is required, or --default (see 'dkv policy set --help')"},
             Case{{"policy", "set", "snapkv", "--default"},
                  "--default and NAME exclude each other (see 'dkv policy set --help')"},
             Case{{"policy", "set", "--default", "--capacity", "9"},
                  "--default takes no parameters (see 'dkv policy set --help')"},
             Case{{"policy", "set", "snapkv", "--instance", "1", "--all"},
                  "--instance excludes --all (see 'dkv policy set --help')"},
             Case{{"policy", "set", "snapkv", "--instance", "12345678901234567"},
                  "--instance: '12345678901234567' is not an id: up to 16 hexadecimal digits, not "
                  "all 0 "
                  "(see 'dkv policy set --help')"},
             Case{{"completion"},
                  "SHELL is required: bash, zsh or fish (see 'dkv completion --help')"},
             Case{{"--endpoint", "http://x", "status"},
                  "endpoint 'http://x' is neither ipc://PATH, tcp://HOST:PORT nor inproc://NAME"},
         }) {
        CAPTURE(arguments);
        FakeSidecar sidecar;

        auto const ran = run_dkv(arguments, sidecar);

        CHECK(ran.exit_code == 2);
        CHECK(ran.err == "dkv: " + message + "\n");
        CHECK(sidecar.connects == 0);
    }
}

TEST_CASE("dkv: numbers that are none, and unknown words, are one line of wrong usage") {
    using Arguments = std::vector<std::string>;
    for (auto const& arguments :
         {Arguments{"status", "--timeout-ms", "0"}, Arguments{"status", "--timeout-ms", "soon"},
          Arguments{"policy", "set", "snapkv", "--capacity", "-5"},
          Arguments{"policy", "set", "snapkv", "--capacity", "many"},
          Arguments{"policy", "set", "snapkv", "--pool", "median"}, Arguments{"completion", "tcsh"},
          Arguments{"policy", "list", "surplus"}, Arguments{"watch", "--count", "x"}}) {
        CAPTURE(arguments);
        FakeSidecar sidecar;

        auto const ran = run_dkv(arguments, sidecar);

        CHECK(ran.exit_code == 2);
        CHECK(lines_of(ran.err) == 1);
        CHECK(ran.err.starts_with("dkv: "));
        CHECK(ran.out.empty());
    }
}

TEST_CASE("dkv: usage errors are JSON too when --json is there") {
    FakeSidecar sidecar;

    auto const ran = run_dkv({"sessions", "xyz", "--json"}, sidecar);

    CHECK(ran.exit_code == 2);
    CHECK(cli::Json::parse(ran.out).at("error").at("code") == "usage");
}

TEST_CASE("dkv: global options go before or after the command") {
    for (auto const& arguments :
         {std::vector<std::string>{"--endpoint", "ipc:///tmp/a", "--timeout-ms", "7",
                                   "--secret-key", "mine", "status"},
          std::vector<std::string>{"status", "--endpoint", "ipc:///tmp/a", "--timeout-ms", "7",
                                   "--secret-key", "mine"},
          std::vector<std::string>{"policy", "list", "--timeout-ms", "7", "--secret-key", "mine",
                                   "--endpoint", "ipc:///tmp/a"}}) {
        auto sidecar = FakeSidecar::running();
        std::string endpoint;
        std::string secret_key;
        std::chrono::milliseconds timeout{};

        auto const ran = run_dkv(arguments, sidecar, [&](cli::Environment& environment) {
            environment.connect = [&, old = environment.connect](std::string where,
                                                                 std::chrono::milliseconds wait,
                                                                 sdk::KeyFiles const& keys) {
                endpoint = where;
                timeout = wait;
                secret_key = keys.secret;
                return old(where, wait, keys);
            };
        });

        CHECK(ran.exit_code == 0);
        CHECK(endpoint == "ipc:///tmp/a");
        CHECK(timeout == std::chrono::milliseconds(7));
        CHECK(secret_key == "mine");
    }
}

TEST_CASE("dkv --help lists every command and every exit status") {
    FakeSidecar sidecar;

    auto const ran = run_dkv({"--help"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(ran.err.empty());
    for (auto const& command : cli::commands())
        CHECK(ran.out.find(command.name) != std::string::npos);
    CHECK(ran.out.find(cli::kExitCodesHelp) != std::string::npos);
}

TEST_CASE("dkv COMMAND --help shows that command's usage") {
    FakeSidecar sidecar;

    auto const ran = run_dkv({"policy", "set", "--help"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(ran.out.find("Usage: dkv policy set [OPTIONS] [NAME]") != std::string::npos);
    CHECK(ran.out.find("--capacity") != std::string::npos);
}

TEST_CASE("dkv serve takes its endpoint from before or after the command") {
    for (auto const& arguments :
         {std::vector<std::string>{"--endpoint", "ipc:///tmp/a", "serve", "--threads", "3"},
          std::vector<std::string>{"serve", "--endpoint", "ipc:///tmp/a", "--threads", "3"}}) {
        FakeSidecar sidecar;
        Config seen;

        auto const ran = run_dkv(arguments, sidecar, [&](cli::Environment& environment) {
            environment.run_daemon = [&](Config const& config, auto const&) -> Result<void> {
                seen = config;
                return {};
            };
        });

        CHECK(ran.exit_code == 0);
        CHECK(ran.out.empty());
        CHECK(seen.endpoint == "ipc:///tmp/a");
        CHECK(seen.threads == 3);
    }
}

TEST_CASE(
    "dkv serve's endpoint: a flag before the environment, that before the file, the same again "
    "after SIGHUP") {
    test::TempDir const folder;
    auto const file = folder / "dkvd.toml";
    std::ofstream(file) << "endpoint = \"ipc:///tmp/file\"\n";
    auto const endpoints = [&](std::vector<std::string> arguments) {
        FakeSidecar sidecar;
        std::vector<std::string> seen;
        arguments.insert(arguments.end(), {"--config", file});
        auto const ran = run_dkv(arguments, sidecar, [&](cli::Environment& environment) {
            environment.add_daemon_flags = add_flags;
            environment.run_daemon = [&](Config const& config, auto const& again) -> Result<void> {
                seen = {config.endpoint, again().value().endpoint};
                return {};
            };
        });
        CHECK(ran.err == "");
        return seen;
    };
    auto const twice = [](std::string const& endpoint) { return std::vector(2, endpoint); };

    CHECK(endpoints({"serve"}) == twice("ipc:///tmp/file"));
    CHECK(endpoints({"--endpoint", "ipc:///tmp/before", "serve"}) == twice("ipc:///tmp/before"));
    CHECK(endpoints({"serve", "--endpoint", "ipc:///tmp/behind"}) == twice("ipc:///tmp/behind"));
    CHECK(endpoints({"--endpoint", "ipc:///tmp/before", "serve", "--endpoint",
                     "ipc:///tmp/behind"}) == twice("ipc:///tmp/behind"));
    ::setenv("DKV_ENDPOINT", "ipc:///tmp/environment", 1);
    auto const of_environment = endpoints({"serve"});
    ::unsetenv("DKV_ENDPOINT");
    CHECK(of_environment == twice("ipc:///tmp/environment"));
}

TEST_CASE("dkv serve exits 1 with the daemon's reason") {
    FakeSidecar sidecar;

    auto const ran = run_dkv({"serve"}, sidecar, [](cli::Environment& environment) {
        environment.run_daemon = [](Config const&, auto const&) -> Result<void> {
            return Error{ErrorCode::AlreadyExists, "a sidecar listens at ipc:///tmp/a already"};
        };
    });

    CHECK(ran.exit_code == 1);
    CHECK(ran.err == "dkv: a sidecar listens at ipc:///tmp/a already\n");
}
