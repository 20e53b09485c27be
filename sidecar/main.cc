// dkvd: argv in, exit code out. 0: stopped as asked; 1: could not start or serve; 2: wrong flags.
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "protocol/base/guarded_memory.h"
#include "protocol/base/version.h"
#include "sidecar/config/config_file.h"
#include "sidecar/daemon.h"

namespace {

int run(int argc, char** argv) {
    CLI::App app("dkvd: compresses the KV caches of inference engines on this machine", "dkvd");
    app.set_version_flag("--version", std::string("dkvd ") + dkv::kVersion);
    dkv::Config config;
    dkv::add_flags(app, config);
    try {
        app.parse(argc, argv);
    } catch (CLI::ParseError const& error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
    auto const checked = dkv::finish(app, config);
    std::vector<std::string> const arguments(argv + 1, argv + argc);
    auto const again = [&arguments] { return dkv::read_config(arguments); };
    auto const result = checked ? dkv::run_daemon(config, again) : checked;
    if (result) return 0;
    std::cerr << "dkvd: " << result.error().message << '\n';
    return checked ? 1 : 2;
}

}  // namespace

int main(int argc, char** argv) {
    dkv::survive_missing_pages();  // A file may be cut, or /dev/shm be full, at any moment.
    try {
        return run(argc, argv);
    } catch (std::exception const& error) {
        std::cerr << "dkvd: " << error.what() << '\n';
        return 1;
    }
}
