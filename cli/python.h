// The commands that are the Python package's: which interpreter runs them, and becoming it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/base/result.h"

namespace dkv::cli {

/// A command of a Python package, which reads all of its arguments itself.
struct PythonCommand {
    char const* name;
    char const* module;                  ///< Run as `python -m MODULE NAME ARGUMENTS`.
    std::span<char const* const> needs;  ///< Python packages without which it cannot run.
};

/// nullptr: no command of Python's.
PythonCommand const* python_command(std::string_view name);

/// The interpreter to run, and what its environment gets.
struct Python {
    std::string interpreter;  ///< A path, or a name for the PATH.
    std::string sources;      ///< For PYTHONPATH, where this program is in a build of the sources.
};

/// $DKV_PYTHON; else the .venv of the sources that `program` was built in; else the python3 beside
/// `program`; else python3.
Python find_python(std::string const& program);

/// Becomes `python -m MODULE NAME ARGUMENTS`, so that signals and the exit status are Python's.
/// Comes back only with a reason: NotFound when the interpreter or a package is missing, naming
/// what to install; Io when the system refuses.
Error become_python(PythonCommand const& command, std::vector<std::string> const& arguments);

}  // namespace dkv::cli
