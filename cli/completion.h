// Completion scripts, made from the command line itself: nothing to keep in step by hand. Pure.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace dkv::cli {

enum class Shell { Bash, Zsh, Fish };

/// What an option or a positional takes: the only words it takes, or the list of `dkv completion
/// --words LIST`, which only a running sidecar knows, or a file, or anything (none of these).
struct CompletionValues {
    std::vector<std::string> words;
    std::string list;
    bool is_file = false;
};

/// What can follow `dkv policy set …`, for one (sub)command.
struct CompletionNode {
    struct Command {
        std::string name;
        std::string summary;
    };
    struct Option {
        std::string name;  ///< "--capacity", "-h"
        std::string summary;
        bool takes_value = false;
        CompletionValues values;
    };
    std::string path;  ///< "" for dkv itself, "/policy/set" for that.
    std::vector<Command> commands;
    std::vector<Option> options;  ///< With those of every command.
    CompletionValues positional;
};

/// Every (sub)command, each after the one that contains it.
std::vector<CompletionNode> completion_nodes(CLI::App const& app);

std::string completion_script(Shell shell, std::vector<CompletionNode> const& nodes);

}  // namespace dkv::cli
