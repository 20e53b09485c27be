// A sweep as a TOML file describes it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/saved/sweep/grid.h"

namespace dkv::cli {

/// What a file says; paths of caches and outputs are made relative to its own folder.
struct SweepConfig {
    std::vector<SweepFile> files;
    Grid grid;
    std::string output;
    std::string csv;
    std::optional<bool> error;
};

/// Errors: Io; CorruptData, with the line, for invalid TOML, an unknown key or a value of
/// another kind.
Result<SweepConfig> read_sweep_config(std::filesystem::path const& path);

}  // namespace dkv::cli
