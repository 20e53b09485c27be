#!/usr/bin/env python3
"""Compiles kernels with one thing wrong in each, and fails unless the emulation catches every one.

A mutant is a text replaced in a copy of a file; what is shipped is never touched. It is caught when
its program ends with an error whose output says what the table expects, by the means it names.
What is unmutated must pass under every means.

    tools/cuda_emu/mutants/mutants.py            all of them
    tools/cuda_emu/mutants/mutants.py sum wait   those with such words in their names
"""
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "build" / "mutants"
PLANTED = "tools/cuda_emu/mutants/planted.cu"
PRIMITIVES = "kernels/cuda/primitives.h"

# How a program is built (a CMake preset, whose flags it takes), and run.
MEANS = {
    "plain": ("dev", {}),
    "lazy streams": ("dev", {"CUDAEMU_STREAMS": "lazy"}),
    "reverse order": ("dev", {"CUDAEMU_ORDER": "reverse"}),
    "host access": ("dev", {"CUDAEMU_HOST_ACCESS": "trap"}),
    "asan, ubsan": ("asan", {}),
    "tsan": ("tsan", {"TSAN_OPTIONS": "halt_on_error=1"}),
}


@dataclasses.dataclass
class Mutant:
    name: str
    check: str      # planted's argument
    means: str
    says: str       # a regular expression of the output that convicts it
    path: str
    old: str        # must occur exactly once
    new: str


MUTANTS = [
    Mutant("missing __syncthreads", "sum", "tsan", r"data race", PLANTED,
           "    __syncthreads();  // The warps' sums.\n", ""),
    Mutant("missing __syncthreads, by the order of warps", "sum", "reverse order",
           r"wrong numbers.*nan", PLANTED,
           "    __syncthreads();  // The warps' sums.\n", ""),
    Mutant("missing __syncwarp", "turn", "tsan", r"data race", PLANTED,
           "    __syncwarp();  // The warp's tile.\n", ""),
    Mutant("shared memory overrun", "turn", "asan, ubsan",
           r"AddressSanitizer: global-buffer-overflow|index \d+ out of bounds", PLANTED,
           "tile[first + kWarpLanes - 1 - lane]", "tile[first + kWarpLanes - lane]"),
    Mutant("global memory overrun", "copy", "asan, ubsan", r"AddressSanitizer: (use-after-poison|SEGV)",
           PLANTED, "    if (i >= count) return;  // The end of the array.\n", ""),
    Mutant("global memory overrun, by guard pages", "copy", "plain", r"", PLANTED,
           "    if (i >= count) return;  // The end of the array.\n", ""),
    Mutant("misaligned vector load", "copy", "asan, ubsan", r"misaligned address", PLANTED,
           "in.data() + 4", "in.data() + 3"),
    Mutant("missing stream wait", "streams", "lazy streams", r"wrong numbers", PLANTED,
           "    must(cudaStreamWaitEvent(second, written, 0));  // The first stream's kernel.\n", ""),
    Mutant("wrong fragment: b's halves exchanged", "product", "plain", r"wrong numbers", PLANTED,
           "column[lane % 4], column[lane % 4 + 4]", "column[lane % 4 + 4], column[lane % 4]"),
    Mutant("wrong fragment: ldmatrix's rows", "product", "plain", r"wrong numbers", PLANTED,
           "&tile_a[stage][lane % 16][8 * (lane / 16)]",
           "&tile_a[stage][lane / 2][8 * (lane % 2)]"),
    Mutant("missing cp.async wait", "product", "plain", r"wrong numbers.*nan", PLANTED,
           "        if (stage == 1) dkv::cuda::wait_copies<0>();  // The second stage.\n", ""),
    Mutant("cp.async wait of a group too few", "product", "plain", r"wrong numbers.*nan", PLANTED,
           "wait_copies<0>();", "wait_copies<1>();"),
    Mutant("cp.async wait of a group too few, in the shipped primitive", "product", "plain",
           r"wrong numbers.*nan", PRIMITIVES,
           "cudaemu::wait_group(kPending);", "cudaemu::wait_group(kPending + 1);"),
    Mutant("missing barrier behind a cp.async wait", "product", "tsan", r"data race", PLANTED,
           "        // Everybody's copies.\n        __syncthreads();\n", ""),
    Mutant("barrier divergence", "sum", "plain",
           r"barrier divergence|cudaemu: deadlock", PLANTED,
           "    __syncthreads();  // The warps' sums.\n",
           "    if (lane == 0) __syncthreads(); else { __syncthreads(); }\n"),
    Mutant("a barrier inside a loop that threads leave apart", "sum", "plain",
           r"barrier divergence|cudaemu: deadlock", PLANTED,
           "        mine += values[i];\n", "        { mine += values[i]; __syncthreads(); }\n"),
    Mutant("wrong mask: the caller is not in it", "sum", "plain",
           r"not in its own \*_sync mask", PLANTED,
           "__shfl_xor_sync(kAllLanes, mine, step)", "__shfl_xor_sync(~1U, mine, step)"),
    Mutant("wrong mask: a lane outside is read", "sum", "plain",
           r"reads a lane that is outside its mask|masks overlap", PLANTED,
           "__shfl_xor_sync(kAllLanes, mine, step)",
           "__shfl_xor_sync(lane < 16 ? 0xffffU : 0xffff0000U, mine, step)"),
    Mutant("*_sync in one branch only", "sum", "plain", r"cudaemu: deadlock|divergence", PLANTED,
           "        mine += __shfl_xor_sync(kAllLanes, mine, step);\n",
           "        if (lane < 31) mine += __shfl_xor_sync(kAllLanes, mine, step);\n"),
    Mutant("shared memory taken for zero", "tally", "plain",
           r"wrong numbers|cudaemu", PLANTED,
           "    if (threadIdx.x < 64) bins[threadIdx.x] = 0;\n", ""),
    Mutant("the host reads device memory", "sum", "host access",
           r"the host touches device memory", PLANTED,
           'return right("the sum", static_cast<double>(out.fetch()[0]), expected);',
           'return right("the sum", static_cast<double>(out.data()[0]), expected);'),
]


def build_tree(preset):
    return OUT / "trees" / preset


def prepare(presets):
    for preset in presets:
        tree = build_tree(preset)
        steps = [["cmake", "--build", str(tree), "--target", "dkv_cuda_emu"]]
        if not (tree / "build.ninja").exists():
            steps.insert(0, ["cmake", "--preset", preset, "-B", str(tree), "-DDKV_TESTS=OFF",
                             "--log-level=WARNING"])
        for step in steps:
            done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{shlex.join(step)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def flags_of(preset):
    """What the emulation itself was compiled with: include folders and sanitizers."""
    for entry in json.loads((build_tree(preset) / "compile_commands.json").read_text()):
        if entry["file"].endswith("tools/cuda_emu/src/warp.cc"):
            words = shlex.split(entry["command"])
            break
    else:
        raise SystemExit("there is no emulation: no CUDA headers, or no boost-context")
    flags = []
    for index, word in enumerate(words):
        if word == "-isystem":
            flags += [word, words[index + 1]]
        elif word.startswith(("-fsanitize", "-fno-sanitize-recover")):
            flags.append(word)
    sanitizers = {"tsan": ["-fsanitize=thread"]}.get(preset)
    return [f for f in flags if sanitizers is None or not f.startswith("-f")] + (sanitizers or [])


def compile_program(name, preset, source, headers):
    """`headers`: a folder whose files stand in front of the repository's."""
    program = OUT / f"{name}-{preset}"
    words = ["g++", "-std=c++20", "-O1", "-g1", "-fno-strict-aliasing", "-fno-omit-frame-pointer",
             *([f"-I{headers}"] if headers else []), f"-I{ROOT}", *flags_of(preset),
             "-x", "c++", str(source), "-x", "none",
             str(build_tree(preset) / "tools/cuda_emu/libdkv_cuda_emu.a"),
             "-lboost_context", "-pthread", "-o", str(program)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr
    return program, ""


def run(program, check, means):
    environment = {**os.environ, **MEANS[means][1]}
    try:
        done = subprocess.run([str(program), check], env=environment, capture_output=True, text=True,
                              errors="replace", timeout=120)
    except subprocess.TimeoutExpired:
        return 124, "it hangs"
    return done.returncode, done.stdout + done.stderr


def check_applies(mutant):
    count = (ROOT / mutant.path).read_text().count(mutant.old)
    if count != 1:
        raise SystemExit(f"{mutant.name}: its text occurs {count} times in {mutant.path}, not "
                         f"once:\n{mutant.old}")


def mutate(mutant, folder):
    """A copy of the mutant's file, below `folder`."""
    text = (ROOT / mutant.path).read_text()
    copy = folder / mutant.path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text.replace(mutant.old, mutant.new))
    return copy


def try_mutant(mutant):
    """(caught, by what)"""
    stem = re.sub(r"\W+", "-", mutant.name)
    folder = OUT / stem
    shutil.rmtree(folder, ignore_errors=True)
    copy = mutate(mutant, folder)
    source = copy if mutant.path == PLANTED else ROOT / PLANTED
    program, errors = compile_program(stem, MEANS[mutant.means][0], source, folder)
    if program is None:
        return False, f"it does not compile: {errors[-2000:]}"
    status, output = run(program, mutant.check, mutant.means)
    program.unlink()
    if status == 0:
        return False, "nothing"
    found = re.search(mutant.says, output)
    if not found:
        return False, f"not by what was expected ({mutant.says}): {output[-1500:]}"
    line = next((l for l in output.splitlines() if found[0] and found[0].splitlines()[0] in l), "")
    return True, re.sub(r"\s+", " ", line)[:90] or f"ends with {status}"


def check_unmutated(presets):
    """What is right passes by every means: else a mutant proves nothing."""
    problems = []
    programs = {}
    for preset in presets:
        programs[preset], errors = compile_program("unmutated", preset, ROOT / PLANTED, None)
        if programs[preset] is None:
            raise SystemExit(f"{PLANTED} does not compile under {preset}:\n{errors[-3000:]}")
    for means, (preset, _) in MEANS.items():
        for check in ("sum", "turn", "copy", "streams", "product", "tally"):
            status, output = run(programs[preset], check, means)
            if status != 0:
                problems.append(f"unmutated {check} fails under {means}: {output[-1500:]}")
    return problems


def main():
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    for mutant in chosen:
        check_applies(mutant)
    presets = sorted({preset for preset, _ in MEANS.values()})
    begin = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    prepare(presets)
    problems = check_unmutated(presets)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(try_mutant, chosen))
    width = max(len(m.name) for m in chosen)
    for mutant, (caught, how) in zip(chosen, results):
        print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name:<{width}}  {mutant.means:<13}  {how}")
        if not caught:
            problems.append(f"{mutant.name} survived {mutant.means}")
    seconds = time.monotonic() - begin
    survived = sum(not caught for caught, _ in results)
    print(f"mutants: {len(chosen) - survived} of {len(chosen)} caught in {seconds:.0f} s")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
