#include <fmt/format.h>

#include "cli/commands/all.h"
#include "sidecar/config/config_file.h"

namespace dkv::cli {
namespace {

Result<Output> check_file(std::string const& path) {
    auto const config = DKV_TRY(read_config_file(path));
    auto const policy = DKV_TRY(resolve(config.policy));
    return Output{fmt::format("{}: good. dkvd would start with {}.\n", path, in_words(policy)),
                  {{"file", path}, {"good", true}, {"policy", in_words(policy)}}};
}

}  // namespace

Run setup_config(CLI::App& app, Context const& /*context*/) {
    app.require_subcommand(1);
    auto path = std::make_shared<std::string>();
    auto* const check = app.add_subcommand(
        "check", "whether dkvd would take this file: the key, the line and what was expected");
    check->add_option("FILE", *path, "TOML, as dkvd --config reads it")->required();
    return [path] { return check_file(*path); };
}

}  // namespace dkv::cli
