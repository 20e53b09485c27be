// The commands that are Python's, with a shell script in the interpreter's place.
#include "cli/python.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/wait.h>

#include "tests/cli/fakes.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::cli;
using namespace dkv::test;

namespace {

/// An executable script. The probe for packages is `-c`; everything else is the command itself.
std::string script_in(TempDir const& folder, std::string const& name, std::string const& text) {
    auto const path = std::filesystem::path(folder.path()) / name;
    std::ofstream(path) << "#!/bin/sh\n" << text;
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
}

/// A child becomes Python; what it writes and its exit status come back.
Ran become(std::vector<std::string> const& arguments, std::string const& interpreter) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    std::fflush(
        nullptr);  // Else the child has it, too: under the thread sanitizer _exit() writes it.
    pid_t const pid = ::fork();
    if (pid == 0) {
        ::dup2(ends[1], STDOUT_FILENO);
        ::close(ends[0]);
        ::close(ends[1]);
        ::setenv("DKV_PYTHON", interpreter.c_str(), 1);
        std::ostringstream err;
        Environment environment;
        environment.become_python = become_python;
        environment.err = &err;
        int const code = run(arguments, environment);
        auto const text = err.str();
        (void)!::write(STDOUT_FILENO, text.data(), text.size());
        ::_exit(code);
    }
    ::close(ends[1]);
    Ran ran;
    char c = 0;
    while (::read(ends[0], &c, 1) == 1)
        ran.out += c;
    ::close(ends[0]);
    int status = 0;
    ::waitpid(pid, &status, 0);
    ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return ran;
}

}  // namespace

TEST_CASE("dkv calibrate, capture, eval, profile and report hand every argument over as it is") {
    TempDir const folder;
    auto const python = script_in(folder, "python",
                                  "[ \"$1\" = -c ] && exit 0\n"
                                  "echo \"$DKV_COMMAND:\"\n"
                                  "for word; do echo \"<$word>\"; done\n");

    CHECK(
        become({"eval", "smollm2", "--endpoint", "no dkv's", "--json", "--help", ""}, python).out ==
        "dkv eval:\n<-m>\n<dkv_lab>\n<eval>\n<smollm2>\n<--endpoint>\n<no dkv's>\n<--json>\n"
        "<--help>\n<>\n");
    CHECK(become({"calibrate", "-o", "p.json", "/a model"}, python).out ==
          "dkv calibrate:\n<-m>\n<dkv_lab>\n<calibrate>\n<-o>\n<p.json>\n</a model>\n");
    CHECK(become({"profile", "list"}, python).out ==
          "dkv profile:\n<-m>\n<dkv>\n<profile>\n<list>\n");
    CHECK(become({"capture", "smollm2", "slot.bin", "-o", "out"}, python).out ==
          "dkv capture:\n<-m>\n<dkv>\n<capture>\n<smollm2>\n<slot.bin>\n<-o>\n<out>\n");
    CHECK(become({"report", "sweep.jsonl"}, python).out ==
          "dkv report:\n<-m>\n<dkv_lab>\n<report>\n<sweep.jsonl>\n");
}

TEST_CASE("a command of Python's asks for the packages that it needs itself") {
    TempDir const folder;
    auto const python =
        script_in(folder, "python", "[ \"$1\" = -c ] && shift 2 && printf \"$*\" && exit 0\n");

    CHECK(contains(become({"report"}, python).out, " has no dkv cffi dkv_lab matplotlib jinja2: "));
    CHECK(contains(become({"capture"}, python).out, " has no dkv cffi torch transformers rich: "));
}

TEST_CASE("dkv eval ends as Python ends") {
    TempDir const folder;
    auto const exits = script_in(folder, "exits", "[ \"$1\" = -c ] && exit 0\nexit 42\n");
    auto const killed = script_in(folder, "killed", "[ \"$1\" = -c ] && exit 0\nkill -INT $$\n");

    CHECK(become({"eval"}, exits).exit_code == 42);
    CHECK(become({"eval"}, killed).exit_code == -SIGINT);
}

TEST_CASE("dkv eval names what to install in one line") {
    TempDir const folder;
    auto const bare = script_in(folder, "bare", "printf 'torch, rich'\n");
    auto const other = script_in(folder, "other", "exit 3\n");
    auto const absent = std::string(folder.path()) + "/absent";

    auto const lacking = become({"eval", "smollm2"}, bare);
    CHECK(lacking.exit_code == kExitFailed);
    CHECK(lacking.out.starts_with("dkv: " + bare + " has no torch, rich: "));
    CHECK(contains(lacking.out, "or set DKV_PYTHON to an interpreter with it\n"));
    CHECK(std::count(lacking.out.begin(), lacking.out.end(), '\n') == 1);
    CHECK(
        become({"eval"}, other).out ==
        "dkv: " + other +
            ": not a working Python 3; apt install python3, or set DKV_PYTHON to an interpreter\n");
    CHECK(become({"calibrate"}, absent).out ==
          "dkv: " + absent +
              ": No such file or directory; apt install python3, or set DKV_PYTHON to an "
              "interpreter\n");
}

TEST_CASE("a global option before a command of Python's is wrong usage") {
    FakeSidecar sidecar;

    auto const ran = run_dkv({"--no-color", "eval", "smollm2"}, sidecar);

    CHECK(ran.exit_code == 2);
    CHECK(ran.err == "dkv: options go behind the command: dkv eval … (see 'dkv eval --help')\n");
}

TEST_CASE("the interpreter is DKV_PYTHON, the sources' .venv, the one beside dkv, or python3") {
    TempDir const folder;
    std::filesystem::path const root = folder.path();
    auto const program = root / "build" / "release" / "bin" / "dkv";
    std::filesystem::create_directories(program.parent_path());
    std::filesystem::create_directories(root / ".venv" / "bin");
    ::unsetenv("DKV_PYTHON");

    CHECK(find_python(program).interpreter == "python3");
    CHECK(find_python(program).sources.empty());
    auto const beside = script_in(folder, "build/release/bin/python3", "");
    CHECK(find_python(program).interpreter == beside);
    script_in(folder, ".venv/bin/python", "");
    CHECK(find_python(program).interpreter == beside);  // Somebody else's .venv.
    std::filesystem::create_directories(root / "protocol" / "python" / "dkv");
    CHECK(find_python(program).interpreter == root / ".venv" / "bin" / "python");
    CHECK(find_python(program).sources ==
          (root / "protocol" / "python").string() + ":" + (root / "tools" / "lab").string());
    ::setenv("DKV_PYTHON", "pypy3", 1);
    CHECK(find_python(program).interpreter == "pypy3");
    ::unsetenv("DKV_PYTHON");
}
