#!/usr/bin/env python3
"""Tries dkv's kernels on this machine's GPU: one command, no network, nothing but Python's own library.

    tools/gpu/gpu_test.py                  builds for this GPU (a CUDA toolkit, cmake, g++, ninja or make, and Debian's
                                           doctest-dev libhwy-dev libtbb-dev), then runs everything
    gpu-bundle/gpu_test.py                 runs what `make gpu-bundle` built elsewhere: a driver is enough
    tools/gpu/gpu_test.py --emulated       the same on the emulation, without a GPU: what is run, and that it is
                                           reported, can be seen; no time means anything

In this order: the kernels' tests on the device, two processes that share one buffer, every op beside a copy within
the device and the least time it can take, torch where Python has one that sees the GPU, and compute-sanitizer where
there is one (memcheck, racecheck, synccheck). What was seen goes to --out as JSON, after every step.

Exit status: 0 nothing failed, 1 something failed, 2 it could not be built, 77 there is no GPU (1 with
DKV_REQUIRE_CUDA=1).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import build  # noqa: E402
import device  # noqa: E402
import figures  # noqa: E402
from steps import Steps, find_program, read_doctest, read_sharing  # noqa: E402

NO_GPU = 77
FORMAT = 1  # Of the JSON.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZER_STATUS = 86  # What compute-sanitizer is told to exit with when it found something.
NO_TIMES = ("THE EMULATION on this machine's CPU, not a GPU: no time, rate or ratio here means anything")
SEES, SHARED = "the programs see the GPU", "two processes, one buffer"
MEASURED, TORCH = "every op beside a copy within the device", "torch, for comparison"


class Run:
    """One run of everything: what was asked for, what was seen."""

    def __init__(self, args, report):
        self.args, self.report = args, report
        self.steps = Steps(self.write)
        report.update(finished=False, steps=self.steps.all)

    def write(self):
        self.report["failed"] = self.steps.named("failed")
        self.report["not_run"] = self.steps.named("not run")
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.args.out.write_text(json.dumps(self.report, indent=1) + "\n")

    def program(self, name, *arguments):
        return [self.args.binaries / name, *arguments]

    def run(self, name, command, read=None, **more):
        return self.steps.run(name, command, self.args.seconds, read, **more)

    def all(self):
        tiny = ["--tiny"] if self.args.emulated else []
        tests = f"--test-case={self.args.tests}"
        self.run(SEES, self.program("dkv_gpu_bench", "--device"), self.read_device)
        for name, what in build.TESTS.items():
            self.run(what, self.program(name, tests), read_doctest, DKV_REQUIRE_CUDA="1")
        self.run(SHARED, self.program("dkv_gpu_ipc"), read_sharing)
        self.measure(self.program("dkv_gpu_bench", *tiny), tiny)
        self.sanitize(tests)
        self.report["finished"] = True
        self.write()

    def read_device(self, output, step):
        self.report["device"] = found = figures.read_bench(output)["device"]
        if ("emulated" in found["built_with"]) != self.args.emulated:
            raise ValueError(f"{self.args.binaries} was built with {found['built_with']}: "
                             + ("it runs on a GPU" if self.args.emulated else "--emulated says so"))
        self.report["gpu_state"] = device.state(found["uuid"])

    def measure(self, bench, tiny):
        self.report.update(figures.read_bench("") | {"device": self.report["device"], "torch": None})
        with device.Sampler((self.report["device"] or {"uuid": 0})["uuid"]) as sampler:
            self.run(MEASURED, bench, self.read_bench, reads_failures=True)
        self.report["clocks"] = sampler.seen
        self.run_torch(tiny)
        figures.compare(self.report)

    def read_bench(self, output, step):
        self.report.update(figures.read_part(output))
        if len(self.report["copies_gb_per_s"]) != 2 or not self.report["ops"]:
            raise ValueError("it ended before its last line")

    def run_torch(self, tiny):
        where, name = ("cpu", f"{TORCH} (on the CPU)") if self.args.emulated else ("cuda", TORCH)
        command = [self.args.python, HERE / "torch_baseline.py", "--device", where, *tiny]
        self.report["torch"] = self.run(name, command, lambda output, step: figures.read_torch(output))

    def sanitize(self, tests):
        sanitizer = self.args.sanitizer
        if sanitizer is None and self.args.emulated:
            self.steps.not_run("compute-sanitizer", "the emulation's programs have no code for a GPU")
            return
        if sanitizer is None:
            toolkits = [self.args.toolkit, os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
            sanitizer = find_program("compute-sanitizer", *(f"{place}/bin" for place in toolkits if place))
        if sanitizer is None:
            self.steps.not_run("compute-sanitizer", "it is not on PATH, nor in CUDA_HOME or /usr/local/cuda")
            return
        for tool in SANITIZERS:
            # Tests provoke refusals of the API, and look at them.
            command = [sanitizer, "--tool", tool, "--error-exitcode", SANITIZER_STATUS, "--report-api-errors", "no"]
            self.run(f"{tool}: every op", [*command, *self.program("dkv_gpu_bench", "--tiny")])
            for name, what in [] if self.args.quick else build.TESTS.items():
                self.run(f"{tool}: {what}", [*command, *self.program(name, tests)], read_doctest, DKV_REQUIRE_CUDA="1")

    def tell(self):
        """The exit status, behind a summary."""
        if self.report["ops"]:
            figures.show(self.report)
        failed, not_run = self.report["failed"], self.report["not_run"]
        several = lambda names, what: f"{len(names)} {what}" + (f" ({'; '.join(names)})" if names else "")
        print(f"{self.args.out}: {len(self.steps.named('passed'))} passed, {several(failed, 'failed')}, "
              f"{several(not_run, 'not run')}")
        if self.args.emulated:
            print(NO_TIMES)
        return 1 if failed else 0


def commit():
    place = HERE / "COMMIT"  # A bundle has one.
    if place.exists():
        return place.read_text().strip()
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def check_libc():
    """A bundle's programs want a C library as new as that of the machine that made it."""
    place = HERE / "GLIBC"
    if not place.exists():
        return
    number = lambda text: tuple(int(part) for part in text.split()[-1].split("."))
    wanted, here = place.read_text(), os.confstr("CS_GNU_LIBC_VERSION")
    if number(here) < number(wanted):
        raise build.CannotBuild(f"this bundle wants glibc {wanted.strip()}, here is {here}: build here (see --help), or "
                                "make the bundle on an older system")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=pathlib.Path, help="a folder of programs that are built already")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-test.json"))
    parser.add_argument("--toolkit", type=pathlib.Path, help="the CUDA toolkit; without: CUDA_HOME, /usr/local/cuda, PATH")
    parser.add_argument("--sanitizer", type=pathlib.Path, help="compute-sanitizer; without: the toolkit's, PATH")
    parser.add_argument("--python", default=sys.executable, help="one that has torch, for comparison")
    parser.add_argument("--quick", action="store_true", help="compute-sanitizer on every op, not on the tests")
    parser.add_argument("--seconds", type=int, default=1800, help="at most, for each step")
    parser.add_argument("--tests", default="*", help="the kernels' tests whose names match")
    parser.add_argument("--emulated", action="store_true", help="run on the emulation: no time means anything")
    args = parser.parse_args(arguments)
    if args.binaries is None and (HERE / "bin").is_dir():
        args.binaries = HERE / "bin"  # This is a bundle.
    return args


def main(arguments=None):
    args = parse(arguments)
    report = {"format": FORMAT, "emulated": args.emulated, "note": NO_TIMES if args.emulated else None,
              "commit": commit(), "machine": platform.platform(),
              "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "driver": None, "device": None, "gpu_state": None}
    try:
        if not args.emulated:
            report["driver"] = device.find()
        check_libc()
        if args.binaries is None:
            args.binaries = build.build(HERE.parents[1], report["driver"], args.toolkit)
    except device.NoGpu as why:
        print(f"no GPU: {why}", file=sys.stderr)
        return 1 if os.environ.get("DKV_REQUIRE_CUDA") == "1" else NO_GPU
    except device.BrokenDriver as why:
        print(f"gpu_test: the driver: {why}", file=sys.stderr)
        return 1
    except build.CannotBuild as why:
        print(f"gpu_test: {why}", file=sys.stderr)
        return 2
    if args.emulated:
        print(NO_TIMES)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # What it runs is ended with it.
    run = Run(args, report)
    run.all()
    return run.tell()


if __name__ == "__main__":
    sys.exit(main())
