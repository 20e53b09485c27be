#include "cli/python.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <spawn.h>
#include <unistd.h>

#include <fmt/format.h>
#include <sys/wait.h>
#include <system_error>

namespace dkv::cli {
namespace {

namespace fs = std::filesystem;

// matplotlib is asked for where something is drawn.
constexpr char const* kModelNeeds[] = {"dkv", "cffi", "torch", "transformers", "rich"};
constexpr char const* kLabNeeds[] = {"dkv", "cffi", "dkv_lab", "torch", "transformers", "rich"};
constexpr char const* kReportNeeds[] = {"dkv", "cffi", "dkv_lab", "matplotlib", "jinja2"};

constexpr PythonCommand kPythonCommands[] = {
    {"calibrate", "dkv_lab", kLabNeeds}, {"capture", "dkv", kModelNeeds},
    {"certify", "dkv_lab", kLabNeeds},   {"eval", "dkv_lab", kLabNeeds},
    {"profile", "dkv", kModelNeeds},     {"report", "dkv_lab", kReportNeeds},
};

constexpr char const* kProbe =
    "import importlib.util as u, sys\n"
    "print(*[m for m in sys.argv[1:] if u.find_spec(m) is None], sep=', ', end='')";

std::string variable(char const* name) {
    char const* const value = std::getenv(name);
    return value == nullptr ? "" : value;
}

bool is_program(fs::path const& path) {
    return ::access(path.c_str(), X_OK) == 0 && !fs::is_directory(path);
}

std::vector<char*> pointers(std::vector<std::string>& words) {
    std::vector<char*> out;
    for (auto& word : words)
        out.push_back(word.data());
    out.push_back(nullptr);
    return out;
}

std::string read_all(int fd) {
    std::string out;
    char buffer[512];
    for (;;) {
        ssize_t const got = ::read(fd, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return out;
        out.append(buffer, static_cast<std::size_t>(got));
    }
}

/// What a program prints, once it has exited with 0.
Result<std::string> printed_by(std::vector<std::string> words) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return Error{ErrorCode::Io, std::strerror(errno)};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    auto const argv = pointers(words);
    pid_t pid = 0;
    int const refused =
        ::posix_spawnp(&pid, argv.front(), &actions, nullptr, argv.data(), ::environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    std::string const out = refused == 0 ? read_all(ends[0]) : std::string();
    ::close(ends[0]);
    if (refused != 0) return Error{ErrorCode::NotFound, std::strerror(refused)};
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) return Error{ErrorCode::NotFound, "not a working Python 3"};
    return out;
}

Result<void> check_modules(Python const& python, std::span<char const* const> needs) {
    std::vector<std::string> probe{python.interpreter, "-c", kProbe};
    probe.insert(probe.end(), needs.begin(), needs.end());
    auto const missing = printed_by(std::move(probe));
    if (!missing)
        return Error{ErrorCode::NotFound,
                     fmt::format("{}: {}; apt install python3, or set DKV_PYTHON to an interpreter",
                                 python.interpreter, missing.error().message)};
    if (!missing.value().empty())
        return Error{
            ErrorCode::NotFound,
            fmt::format("{} has no {}: {}", python.interpreter, missing.value(),
                        python.sources.empty()
                            ? "pip install 'dkv[lab]', or set DKV_PYTHON to an interpreter with it"
                            : "make deps, or set DKV_PYTHON to an interpreter with it")};
    return {};
}

/// The sources' root, when `program` is <root>/build/PRESET/bin/dkv.
fs::path sources_of(std::string const& program) {
    fs::path const root = fs::path(program).parent_path().parent_path().parent_path().parent_path();
    std::error_code ignored;
    return fs::is_directory(root / "protocol" / "python" / "dkv", ignored) ? root : fs::path();
}

/// The package is to talk to the sidecar and the library of the same build.
void set_environment(Python const& python, std::string const& program, char const* command) {
    ::setenv("DKV_COMMAND", fmt::format("dkv {}", command).c_str(), 1);
    if (python.sources.empty()) return;
    auto const before = variable("PYTHONPATH");
    ::setenv("PYTHONPATH", (python.sources + (before.empty() ? "" : ":" + before)).c_str(), 1);
    fs::path const bin = fs::path(program).parent_path();
    ::setenv("DKV_BIN_DIR", bin.c_str(), 0);
    ::setenv("DKV_LIBRARY", (bin.parent_path() / "lib" / "libdkv.so").c_str(), 0);
}

}  // namespace

PythonCommand const* python_command(std::string_view name) {
    for (auto const& command : kPythonCommands)
        if (name == command.name) return &command;
    return nullptr;
}

Python find_python(std::string const& program) {
    fs::path const root = sources_of(program);
    Python python;
    if (!root.empty())
        python.sources = fmt::format("{0}/protocol/python:{0}/tools/lab", root.native());
    fs::path const beside = fs::path(program).parent_path() / "python3";
    if (auto const given = variable("DKV_PYTHON"); !given.empty())
        python.interpreter = given;
    else if (!root.empty() && is_program(root / ".venv" / "bin" / "python"))
        python.interpreter = root / ".venv" / "bin" / "python";
    else if (beside.is_absolute() && is_program(beside))
        python.interpreter = beside;
    else
        python.interpreter = "python3";
    return python;
}

Error become_python(PythonCommand const& command, std::vector<std::string> const& arguments) {
    std::error_code ignored;
    std::string const program = fs::read_symlink("/proc/self/exe", ignored);
    Python const python = find_python(program);
    set_environment(python, program, command.name);
    if (auto const good = check_modules(python, command.needs); !good) return good.error();
    std::vector<std::string> words{python.interpreter, "-m", command.module, command.name};
    words.insert(words.end(), arguments.begin(), arguments.end());
    auto const argv = pointers(words);
    ::execvp(argv.front(), argv.data());
    return {ErrorCode::Io, fmt::format("{}: {}", python.interpreter, std::strerror(errno))};
}

}  // namespace dkv::cli
