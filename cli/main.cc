// The real world around dkv: streams, the terminal, signals, the SDK, the daemon.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <unistd.h>
#include <vector>

#include <sys/ioctl.h>

#include "cli/app.h"
#include "cli/doctor/probe.h"
#include "protocol/base/guarded_memory.h"
#include "sidecar/daemon.h"

namespace {

// A signal handler has nothing but globals.
volatile std::sig_atomic_t interrupted = 0;

std::function<bool()> catch_interrupts() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };  // No SA_RESTART: a wait ends at once.
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    return [] { return interrupted != 0; };
}

bool is_set(char const* name) {
    char const* const value = std::getenv(name);
    return value != nullptr && *value != '\0';
}

bool locale_is_utf8() {
    for (char const* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
        if (!is_set(name)) continue;
        std::string_view const value = std::getenv(name);
        return value.find("UTF-8") != value.npos || value.find("utf8") != value.npos;
    }
    return false;
}

dkv::cli::Style style_of_stdout(bool terminal) {
    dkv::cli::Style style;
    char const* const term = std::getenv("TERM");
    bool const dumb = term == nullptr || std::strcmp(term, "dumb") == 0;
    style.color = terminal && !dumb && !is_set("NO_COLOR");
    style.unicode = locale_is_utf8();
    winsize size{};
    if (terminal && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        style.columns = size.ws_col;
        style.rows = size.ws_row;
    }
    return style;
}

dkv::cli::Environment real_environment() {
    dkv::cli::Environment environment;
    environment.connect = dkv::sdk::Controller::connect;
    environment.add_daemon_flags = dkv::add_flags;
    environment.run_daemon = dkv::run_daemon;
    environment.read_machine = dkv::cli::doctor::read_machine;
    environment.catch_interrupts = catch_interrupts;
    environment.pause = [](std::chrono::milliseconds time) { std::this_thread::sleep_for(time); };
    environment.become_python = dkv::cli::become_python;
    environment.out = &std::cout;
    environment.err = &std::cerr;
    environment.out_is_terminal = ::isatty(STDOUT_FILENO) == 1;
    environment.err_is_terminal = ::isatty(STDERR_FILENO) == 1;
    environment.style = style_of_stdout(environment.out_is_terminal);
    if (environment.out_is_terminal) environment.style_now = [] { return style_of_stdout(true); };
    return environment;
}

}  // namespace

// The one place where an exception ends: cppzmq and std::bad_alloc throw; we do not.
int main(int argc, char** argv) {
    // A file-size limit is an error of one write, with a message, not a death.
    std::signal(SIGXFSZ, SIG_IGN);
    dkv::survive_missing_pages();  // Likewise.
    try {
        auto const environment = real_environment();
        return dkv::cli::run(std::vector<std::string>(argv + 1, argv + argc), environment);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "dkv: internal error: %s\n", error.what());
        return dkv::cli::kExitInternal;
    }
}
