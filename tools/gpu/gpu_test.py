#!/usr/bin/env python3
"""Tries dkv's kernels on this machine's GPU: one command, no network, nothing but Python's own library.

    tools/gpu/gpu_test.py                       builds for this GPU (a CUDA toolkit, cmake, ninja, g++, and Debian's
                                                doctest-dev libhwy-dev libtbb-dev), then runs everything
    tools/gpu/gpu_test.py --binaries bin        runs what `make gpu-bundle` built elsewhere: a driver is enough

It runs every kernel's tests on the device, two processes sharing memory, compute-sanitizer where there is one
(memcheck, racecheck, synccheck), and the bandwidth of each op against a copy within the device, beside torch where
Python has one that sees the GPU. What was seen goes to --out as JSON.

Exit status: 0 all passed, 1 something failed, 2 it could not be built, 77 there is no GPU.
"""
import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import build  # noqa: E402
import device  # noqa: E402
import figures  # noqa: E402

NO_GPU = 77
TAIL = 4000  # Characters of a failed step's output.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZER_STATUS = 86  # What compute-sanitizer is told to exit with when it found something.


class Steps:
    """What was run, in order, and how it went."""

    def __init__(self):
        self.all = []

    def skip(self, name, why):
        self._add({"name": name, "status": "skipped", "why": why})

    def run(self, name, command, seconds, **environment):
        """The step's output when it passed, else None."""
        begin = time.monotonic()
        step = {"name": name, "command": " ".join(map(str, command))}
        try:
            done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, errors="replace", timeout=seconds, env={**os.environ, **environment})
            passed, output = done.returncode == 0, done.stdout
            if not passed:
                step["exit_status"] = done.returncode
        except subprocess.TimeoutExpired as expired:
            passed, output = False, (expired.stdout or b"").decode(errors="replace")
            step["why"] = f"took longer than {seconds} s"
        except OSError as error:
            passed, output, step["why"] = False, "", str(error)
        step.update(status="passed" if passed else "failed", seconds=round(time.monotonic() - begin, 2))
        if not passed:
            step["output"] = output[-TAIL:]
        self._add(step)
        return output if passed else None

    def _add(self, step):
        self.all.append(step)
        print(f"{step['status']:8} {step['name']}" + (f": {step['why']}" if "why" in step else ""), flush=True)
        if step["status"] == "failed":
            print(step.get("output", ""), file=sys.stderr)

    def failed(self):
        return [step["name"] for step in self.all if step["status"] == "failed"]


def find_sanitizer():
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    return shutil.which("compute-sanitizer") or next(
        (path for place in places if (path := shutil.which(f"{place}/bin/compute-sanitizer"))), None)


def sanitize(steps, args, kernels):
    if args.emulated:
        steps.skip("compute-sanitizer", "the emulation has no GPU's code")
        return
    found = find_sanitizer()
    if found is None:
        steps.skip("compute-sanitizer", "it is not on PATH, nor in CUDA_HOME or /usr/local/cuda")
        return
    for tool in SANITIZERS:
        command = [found, "--tool", tool, "--error-exitcode", SANITIZER_STATUS]
        steps.run(f"{tool}: every op once", [*command, args.binaries / "dkv_gpu_bench", "--tiny"], args.seconds)
        if not args.quick:
            steps.run(f"{tool}: the kernels' tests", [*command, *kernels], args.seconds, DKV_REQUIRE_CUDA="1")


def run_torch(steps, args):
    command = [args.python, HERE / "torch_baseline.py", *(["--tiny"] if args.emulated else [])]
    probe = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    seen = subprocess.run([args.python, "-c", probe], stderr=subprocess.DEVNULL).returncode
    if seen != 0:
        why = {1: "Python has no torch", 3: "torch sees no GPU"}.get(seen, f"torch ended with status {seen}")
        steps.skip("torch, for comparison", why)
        return {}
    said = steps.run("torch, for comparison", command, args.seconds)
    return figures.read_torch(said) if said is not None else {}


def commit():
    place = HERE / "COMMIT"  # A bundle has one.
    if place.exists():
        return place.read_text().strip()
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or None


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=pathlib.Path, help="a folder of programs that are built already")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-test.json"))
    parser.add_argument("--python", default=sys.executable, help="one that has torch, for comparison")
    parser.add_argument("--quick", action="store_true", help="compute-sanitizer on every op once, not on the tests")
    parser.add_argument("--seconds", type=int, default=1800, help="at most, for each step")
    parser.add_argument("--tests", default="*", help="the kernels' tests whose names match")
    parser.add_argument("--emulated", action="store_true",
                        help="--binaries run on the emulation: for this script's own test; times mean nothing")
    args = parser.parse_args(arguments)
    if args.emulated and args.binaries is None:
        parser.error("--emulated wants --binaries")
    return args


def main(arguments=None):
    args = parse(arguments)
    report = {"commit": commit(), "machine": platform.platform(), "emulated": args.emulated}
    if not args.emulated:
        try:
            report["driver"] = device.find()
        except device.NoGpu as why:
            print(f"no GPU: {why}", file=sys.stderr)
            return NO_GPU
    if args.binaries is None:
        try:
            args.binaries = build.build(HERE.parents[1], report["driver"]["compute_capability"])
        except build.CannotBuild as why:
            print(f"gpu_test: {why}", file=sys.stderr)
            return 2

    steps = Steps()
    kernels = [args.binaries / "kernels_test", f"--test-case={args.tests}"]
    for name, what in build.TESTS.items():
        if args.emulated and not (args.binaries / name).exists():
            steps.skip(what, f"{name} is not built")
        else:
            steps.run(what, [args.binaries / name, f"--test-case={args.tests}"], args.seconds, DKV_REQUIRE_CUDA="1")
    steps.run("two processes, one buffer", [args.binaries / "dkv_gpu_ipc"], args.seconds)
    sanitize(steps, args, kernels)
    bench = [args.binaries / "dkv_gpu_bench", *(["--tiny"] if args.emulated else [])]
    said = steps.run("every op against a copy within the device", bench, args.seconds)
    if said is not None:
        report.update(figures.read_bench(said))
        figures.compare(report["ops"], run_torch(steps, args))
        figures.show(report)
    report["steps"] = steps.all
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    failed = steps.failed()
    print(f"{args.out}: {len(steps.all) - len(failed)} of {len(steps.all)} steps did not fail"
          + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
