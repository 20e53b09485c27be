#!/usr/bin/env python3
"""Compiles kernels with one thing wrong in each, and fails unless every one is caught.

A mutant is a text replaced in a copy of a file; what is shipped is never touched. Those of planted.toml
are of planted.cu, a program of small kernels: what the emulation catches. Those of shipped.toml are of
dkv's own: one file is compiled anew, linked with one file of tests, and some of its cases are run. A
mutant is caught when its program ends with an error whose output says what the table expects, by the
means it names; one that survives is a test that is missing. What is unmutated must pass all of that.

    tools/cuda_emu/mutants/mutants.py              all of them
    tools/cuda_emu/mutants/mutants.py select wait  those with such words in their names
    tools/cuda_emu/mutants/mutants.py --list
"""
import concurrent.futures
import dataclasses
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

from tree import OUT, ROOT, BuildError, Tree

HERE = pathlib.Path(__file__).resolve().parent
PLANTED = "tools/cuda_emu/mutants/planted.cu"
SECONDS_MAX = 120

# How a program is built (a CMake preset, whose flags it takes), and run.
MEANS = {
    "plain": ("dev", {}),
    "lazy streams": ("dev", {"CUDAEMU_STREAMS": "lazy"}),
    "reverse order": ("dev", {"CUDAEMU_ORDER": "reverse"}),
    "host access": ("dev", {"CUDAEMU_HOST_ACCESS": "trap"}),
    "asan, ubsan": ("asan", {}),
    "tsan": ("tsan", {"TSAN_OPTIONS": "halt_on_error=1"}),
}
# What doctest says of a test that failed, or died.
FAILED = r"ERROR: (CHECK|REQUIRE)|FATAL ERROR|ERROR: test case CRASHED"


@dataclasses.dataclass
class Mutant:
    name: str
    old: str             # Must occur exactly once in the file.
    new: str
    file: str = PLANTED
    says: str = FAILED   # A regular expression of the output that convicts it.
    means: str = "plain"
    check: str = ""      # planted's argument; or, of shipped kernels:
    test: str = ""       # "kernels/select_test",
    cases: str = ""      # those of its cases,
    units: list[str] = dataclasses.field(default_factory=list)  # and what is compiled anew: the file.

    @property
    def preset(self):
        return MEANS[self.means][0]

    @property
    def arguments(self):
        if self.check:
            return [self.check]
        return [f"--test-case={self.cases}", "--subcase=*emulated*", "--abort-after=1", "--no-intro=true"]


def has_case(test, pattern):
    if not test.is_file():
        return False
    names = [re.sub(r'"\s*"', "", name) for name in re.findall(r'TEST_CASE\w*\(\s*"((?:[^"]|"\s*")+)"', test.read_text())]
    return any(fnmatch.fnmatch(name.lower(), pattern.lower()) for name in names)


def load():
    mutants = []
    for table in ("planted.toml", "shipped.toml"):
        with open(HERE / table, "rb") as file:
            mutants += [Mutant(**entry) for entry in tomllib.load(file)["mutant"]]
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text().count(mutant.old)
        if count != 1:
            raise SystemExit(f"{mutant.name}: its text occurs {count} times in {mutant.file}, not once:\n{mutant.old}")
        if mutant.old == mutant.new or bool(mutant.check) == bool(mutant.test):
            raise SystemExit(f"{mutant.name}: it changes nothing, or has not one of check and test")
        if mutant.test and not has_case(ROOT / "tests" / f"{mutant.test}.cc", mutant.cases):
            raise SystemExit(f"{mutant.name}: tests/{mutant.test}.cc has no case {mutant.cases!r}")
        if len(mutant.cases.split(",")) > 1:
            raise SystemExit(f"{mutant.name}: to doctest a comma ends a name; '*' stands for it")
    return mutants


def run(program, mutant):
    environment = {**os.environ, **MEANS[mutant.means][1]}
    try:
        done = subprocess.run([str(program), *mutant.arguments], env=environment, capture_output=True, text=True,
                              errors="replace", timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return 124, "it hangs"
    return done.returncode, done.stdout + done.stderr


def make_program(mutant, tree, folder, program):
    """From a copy of the mutant's file, below `folder`."""
    copy = folder / mutant.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.file).read_text().replace(mutant.old, mutant.new))
    if mutant.check:
        source = copy if mutant.file == PLANTED else ROOT / PLANTED
        tree.compile_planted(source, folder, program)
        return
    objects = []
    for unit in mutant.units or [mutant.file]:
        objects.append(folder / (pathlib.Path(unit).name + ".o"))
        tree.compile(unit, folder, objects[-1])
    tree.link(mutant.test, objects, program)


def try_mutant(mutant, tree):
    """(caught, by what)"""
    folder = OUT / re.sub(r"\W+", "-", mutant.name)
    shutil.rmtree(folder, ignore_errors=True)
    program = folder / "program"
    try:
        make_program(mutant, tree, folder, program)
    except BuildError as error:
        return False, f"it does not compile: {error}"
    status, output = run(program, mutant)
    shutil.rmtree(folder)
    if status == 0:
        return False, "nothing"
    found = re.search(mutant.says, output)
    if not found:
        return False, f"not by what was expected ({mutant.says}): {output[-1500:]}"
    line = next((l for l in output.splitlines() if found[0] and found[0].splitlines()[0] in l), "")
    line = re.sub(r"\s+", " ", line.replace(f"{ROOT}/", ""))
    return True, line[:100] or f"ends with {status}"


def check_unmutated(mutant, tree, program):
    """What is right passes by the same means: else a mutant proves nothing."""
    status, output = run(program, mutant)
    if status != 0:
        return [f"unmutated {' '.join(mutant.arguments)} fails under {mutant.means}: {output[-1500:]}"]
    ran = re.search(r"test cases:\s+(\d+) \|", output)
    if mutant.test and (ran is None or ran[1] == "0"):
        return [f"{mutant.test} has no case {mutant.cases!r}"]
    return []


def prepare(mutants):
    """The trees, and what is unmutated: (tree by preset, program by preset and test)"""
    trees, programs = {}, {}
    for preset in dict.fromkeys(preset for preset, _ in MEANS.values()):
        tests = {mutant.test for mutant in mutants if mutant.preset == preset}
        if not tests:
            continue
        tree = trees[preset] = Tree(preset)
        tree.configure()
        tree.build(tests - {""})
        for test in tests:
            program = programs[preset, test] = OUT / f"unmutated-{preset}-{test.replace('/', '-')}"
            if test:
                tree.link(test, [], program)
            else:
                tree.compile_planted(ROOT / PLANTED, None, program)
    return trees, programs


def main():
    words = sys.argv[1:]
    mutants = load()
    if words == ["--list"]:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    chosen = [m for m in mutants if not words or any(word in m.name for word in words)]
    if not chosen:
        raise SystemExit("no mutant has such a name")
    begin = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        trees, programs = prepare(chosen)
    except BuildError as error:
        raise SystemExit(str(error)) from None
    built = time.monotonic() - begin
    runs = {(m.means, *m.arguments): m for m in chosen}.values()
    width = max(len(m.name) for m in chosen)
    problems, survived = [], 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        unmutated = pool.map(lambda m: check_unmutated(m, trees[m.preset], programs[m.preset, m.test]), runs)
        results = pool.map(lambda m: try_mutant(m, trees[m.preset]), chosen)
        for some in unmutated:
            problems += some
        for mutant, (caught, how) in zip(chosen, results):
            print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name:<{width}}  {mutant.means:<13}  {how}", flush=True)
            if not caught:
                survived += 1
                problems.append(f"{mutant.name} survived {mutant.means}")
    seconds = time.monotonic() - begin
    print(f"mutants: {len(chosen) - survived} of {len(chosen)} caught in {seconds:.0f} s, {built:.0f} of them to build")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
