// The TOML file of --config: the keys are the names of dkvd's flags.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "protocol/base/result.h"
#include "sidecar/config/config.h"

namespace CLI {
class App;
}

namespace dkv {

/// Fills the options of `app` that neither the command line nor the environment gave from
/// config.config_file, if that is named, then does what check() does. `app` has been parsed by
/// add_flags()'s options, which fill `config`.
/// Errors: InvalidArgument, "FILE:LINE: …" with the key, what was found and what was expected;
/// NotFound and Io for the file; else what check() says.
Result<void> finish(CLI::App& app, Config& config);

/// The command line of dkvd, and the file that it names. Words that are not flags of dkvd are
/// passed over. Errors: as finish()'s.
Result<Config> read_config(std::vector<std::string> const& arguments);

/// What dkvd would be by this file alone: the environment is passed over, which would hide what it
/// overrides. Errors: as finish()'s.
Result<Config> read_config_file(std::string const& path);

/// Flags whose value differs and cannot change while dkvd runs; empty: all of them may.
std::vector<std::string> fixed_changes(Config const& before, Config const& after);

}  // namespace dkv
