// One part of the files of a command that several processes divide among them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "protocol/base/result.h"

namespace CLI {
class App;
}

namespace dkv::cli {

struct Shard {
    std::uint32_t index = 0;  ///< 0 … count - 1.
    std::uint32_t count = 1;

    bool is_all() const noexcept { return count == 1; }
    /// Whether a file, or a folder that is a cache, is of this shard. Its bytes decide, so that
    /// names, mounts and the order of arguments do not: its size, and the first and last 4 KiB of
    /// each file. What cannot be read is of every shard: each of them says so.
    bool has(std::filesystem::path const& path) const;
};

/// "I/N"; "auto": what the array job in the environment says (Slurm, Kubernetes, TASK_ID);
/// "auto/N": only the index is the environment's.
///
/// Errors: InvalidArgument, naming the value or the variable.
Result<Shard> parse_shard(std::string const& text);

/// --shard. `text` must outlive the parse.
void add_shard_flag(CLI::App& app, std::string& text);

}  // namespace dkv::cli
