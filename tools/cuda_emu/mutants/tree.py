"""A build folder of the repository under one preset, and programs linked beside it with a file or two
compiled anew from a folder that stands in front of the repository's."""
import functools
import json
import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "build" / "mutants"
TESTS = "kernels_test"  # Whose libraries every program is linked with, and one test file.


class BuildError(Exception):
    pass


def run(words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(map(str, words))}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


class Tree:
    def __init__(self, preset):
        self.preset = preset
        self.folder = OUT / "trees" / preset

    def configure(self):
        # One instruction set for the CPU's kernels, and little debug information: built quickly.
        run(["cmake", "--preset", self.preset, "-B", self.folder, "--log-level=WARNING", "-DDKV_BENCH=OFF",
             "-DDKV_TESTS=ON", "-DCMAKE_UNITY_BUILD=OFF", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1",
             "-DCMAKE_CXX_FLAGS=-DHWY_COMPILE_ONLY_STATIC"], ROOT)
        if "dkv_cuda_emu" not in (self.folder / "build.ninja").read_text():
            raise BuildError("the emulation was not built: CUDA headers or boost-context are missing")

    def build(self, tests):
        """The libraries, and the objects of `tests` ("kernels/select_test")."""
        inputs = [word for word in self._link_words if word.endswith((".o", ".a")) and not word.startswith("/")]
        wanted = [word for word in inputs if not word.endswith("_test.cc.o")]
        run(["cmake", "--build", ".", "--target", *wanted, *map(self._test_object, sorted(tests))], self.folder)

    def compile(self, source, front, to):
        """`source`, a path in the repository, with what is in folder `front` in the repository's place."""
        words = shlex.split(self._commands[source])
        kept = [word for word in words if word != "-MD"]
        for flag in ("-MT", "-MF"):
            if flag in kept:
                at = kept.index(flag)
                del kept[at:at + 2]
        copy = front / source
        kept = [str(copy if copy.exists() else word) if word == str(ROOT / source) else word for word in kept]
        kept[kept.index("-o") + 1] = str(to)
        kept.insert(kept.index(f"-I{ROOT}"), f"-I{front}")
        run([*kept, "-w"], self.folder)

    def link(self, test, objects, program):
        """One test's program; `objects` are met before the libraries that they are of."""
        words = [word for word in self._link_words if not word.endswith("_test.cc.o")]
        at = words.index("-o")
        words[at + 1] = str(program)
        words[at:at] = [self._test_object(test), *map(str, objects)]
        run(words, self.folder)

    def compile_planted(self, source, front, program):
        """One program of one file and the emulation alone."""
        words = ["g++", "-std=c++20", "-O1", "-g1", "-fno-strict-aliasing", "-fno-omit-frame-pointer",
                 *([f"-I{front}"] if front else []), f"-I{ROOT}", *self._emulation_flags, "-x", "c++", source,
                 "-x", "none", self.folder / "tools/cuda_emu/libdkv_cuda_emu.a", "-lboost_context", "-pthread",
                 "-o", program]
        run(words, self.folder)

    @staticmethod
    def _test_object(test):
        path = pathlib.PurePath("tests", test)
        return f"{path.parent}/CMakeFiles/{path.parent.name}_test.dir/{path.name}.cc.o"

    @functools.cached_property
    def _link_words(self):
        commands = run(["ninja", "-t", "commands", TESTS], self.folder)
        for part in re.split(r" && |\n", commands):
            if f"-o bin/{TESTS} " in part:
                return shlex.split(part)
        raise BuildError(f"nothing links {TESTS}")

    @functools.cached_property
    def _commands(self):
        """The compilation of each file for the emulation."""
        return {str(pathlib.Path(entry["file"]).relative_to(ROOT)): entry["command"]
                for entry in json.loads((self.folder / "compile_commands.json").read_text())
                if "dkv_cuda_emu" in entry.get("output", entry["command"])}

    @functools.cached_property
    def _emulation_flags(self):
        """What the emulation itself was compiled with: include folders and sanitizers."""
        words = shlex.split(self._commands["tools/cuda_emu/src/warp.cc"])
        flags = [word for at, word in enumerate(words) if word == "-isystem" or words[at - 1] == "-isystem"]
        if self.preset == "tsan":  # The emulation is not instrumented, but what runs on it is.
            return [*flags, "-fsanitize=thread"]
        return flags + [word for word in words if word.startswith(("-fsanitize", "-fno-sanitize-recover"))]
