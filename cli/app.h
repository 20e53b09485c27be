// The whole program but main(): arguments in, text and an exit status out.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"

namespace dkv::cli {

/// The command line as CLI11 sees it, with what each command does.
struct Program {
    explicit Program(Environment const& environment);

    Context context;
    CLI::App app;
    std::vector<std::pair<CLI::App*, Run>> runs;
};

/// `arguments` without the program's name. Prints to the environment's streams; returns the exit
/// status. What CLI11 throws ends here; bad_alloc and its like do not.
int run(std::vector<std::string> arguments, Environment const& environment);

}  // namespace dkv::cli
