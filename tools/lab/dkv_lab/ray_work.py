"""`dkv sweep` and `compact` over many files and `dkv eval` over many prompts, on Ray's workers.

    dkv-lab ray sweep caches/ -o sweep.jsonl -- --policy auto,snapkv --capacity 64,128
    dkv-lab ray compact caches/ -o small/ -- --capacity 256
    dkv-lab ray eval smollm2 -o results.csv -- --policies snapkv,joined --needles 100

What comes out is what one process writes. Files and prompts go to the workers in small groups; a group whose worker
dies is done again by another one, and goes on behind what was finished. Everything after -- is for dkv. Every worker
sees the same paths: on a cluster, a shared file system.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dkv import programs
from dkv.errors import UserError

from . import ranges, ray_eval, shard

RETRIES = 5  # Of a group whose worker dies.
_PR_SET_PDEATHSIG = 1
# After -- they would be of each group alone, not of the whole: why they cannot mean what they say there.
_NOT_PASSED_ON = {
    "--recursive": "folders are searched before groups are made: name them each",
    "--shard": "the files are divided into groups already",
    "--csv": "every group would write over it: make it of the output with dkv sweep",
    "--output": "give it before --",
    "--config": "it would be read anew for every group: give its settings as flags",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    own, flags = arguments, []
    if "--" in arguments:
        own, flags = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog="dkv-lab ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", choices=("sweep", "compact", "eval"))
    parser.add_argument("files", nargs="+", metavar="FILE|MODEL", help="saved caches, and folders of them; eval: a model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="sweep and eval: the results; compact: a folder")
    parser.add_argument("--address", help="of a Ray cluster; by default one is started on this machine")
    parser.add_argument("--workers", type=ranges.count(1), help="groups at once; by default Ray's CPUs")
    parser.add_argument("--group", type=ranges.count(1), default=8, help="files or prompts of a group (%(default)s)")
    options = parser.parse_args(own)
    if options.work == "eval" and len(options.files) > 1:
        parser.error(f"{' '.join(options.files)}: eval takes one model")
    for flag in flags:
        for name in _long_names(flag):
            if name in _NOT_PASSED_ON:
                parser.error(f"{flag} after --: {_NOT_PASSED_ON[name]}")
    options.flags = flags
    return options


def _long_names(flag: str) -> list[str]:
    """What an argument of dkv's sets, where its short names are r and o: -r, -oFILE, --output=FILE."""
    if flag.startswith("--"):
        return [flag.split("=", 1)[0]]
    letter = re.match(r"-[A-Za-z]*?([ro])", flag)
    return [{"r": "--recursive", "o": "--output"}[letter[1]]] if letter else []


def inputs(dkv: str, paths: list[str], work: str) -> list[str]:
    """The caches as `dkv ls` finds and orders them; of a sweep, those that are whole."""
    listed = subprocess.run([dkv, "ls", "--json", *paths], capture_output=True, text=True)
    caches = json.loads(listed.stdout or "{}").get("caches")
    if caches is None:
        raise UserError(listed.stderr.removeprefix("dkv: ") or f"{dkv} ls ended with status {listed.returncode}")
    whole = [cache["file"] for cache in caches if work != "sweep" or cache.get("whole", True)]
    for cache in caches:
        if cache["file"] not in whole:
            print(f"{cache['file']}: passed over: tokens are missing already, and a sweep needs whole caches", file=sys.stderr)
    if not whole:
        raise UserError(f"{caches[0]['file']}: tokens are missing already: a sweep needs whole caches")
    return whole


def run_group(command: list[str]) -> tuple[int, str]:
    """One group by one process, which ends with the worker; its exit status and what it said on stderr."""
    die_with_parent = ctypes.CDLL(None).prctl
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: die_with_parent(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    return done.returncode, done.stderr


def distribute(ray, task, commands: list[list[str]], at_once: int) -> Iterator[tuple[int, int, str]]:
    """(group, exit status, words for people) as groups end, `at_once` of them running."""
    waiting = list(range(len(commands)))[::-1]
    running: dict = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            index = waiting.pop()
            running[task.remote(commands[index])] = index
        for ended in ray.wait(list(running), num_returns=1)[0]:
            index = running.pop(ended)
            try:
                yield index, *ray.get(ended)
            except ray.exceptions.RayError as error:
                yield index, 1, f"dkv-lab ray: {' '.join(str(error).split())}\n"


def cluster(options: argparse.Namespace) -> dict:
    """Which one Ray is to use. Without an address Ray would attach to the one that RAY_ADDRESS names."""
    return {"address": options.address} if options.address else {"address": "local", "num_cpus": options.workers}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.work != "compact" and options.output.exists():
        takes = "dkv report" if options.work == "sweep" else "dkv eval report"
        raise UserError(f"{options.output}: is there already: give another output; {takes} takes both")
    try:
        import ray
    except ImportError:
        raise UserError("there is no package ray: pip install 'dkv-lab[ray]'") from None
    work = ray_eval.plan(options) if options.work == "eval" else _plan(options)
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning", **cluster(options))
    try:
        return _run(ray, options, work)
    finally:
        if started:
            ray.shutdown()


def _plan(options: argparse.Namespace) -> ray_eval.Plan:
    """Of sweep and compact: the files by groups."""
    program = str(programs.find("dkv"))
    files = inputs(program, options.files, options.work)
    groups = [files[at : at + options.group] for at in range(0, len(files), options.group)]
    names = [_part_name(group, options.flags) for group in groups]
    sweep = options.work == "sweep"
    parts = options.output.with_name(f".{options.output.name}.parts") if sweep else options.output
    outputs = [str(parts / name) if sweep else f"{parts}/" for name in names]
    more = options.flags if sweep else ["--jobs", "1", *options.flags]
    commands = [[program, options.work, *group, "-o", output, *more] for group, output in zip(groups, outputs)]
    join = (lambda: _join([Path(path) for path in outputs], options.output)) if sweep else None
    return ray_eval.Plan(parts, commands, [len(group) for group in groups], "files", join)


def _run(ray, options: argparse.Namespace, plan: ray_eval.Plan) -> int:
    at_once = options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    plan.parts.mkdir(parents=True, exist_ok=True)
    folder = os.getcwd()

    @ray.remote(num_cpus=1, max_retries=RETRIES)
    def work(command: list[str]) -> tuple[int, str]:
        os.chdir(folder)
        return run_group(command)

    failed, done, total = 0, 0, sum(plan.sizes)
    noted: set[str] = set()
    for index, status, said in distribute(ray, work, plan.commands, at_once):
        done += plan.sizes[index]
        failed += status != 0
        sys.stderr.write(said if status or options.work != "eval" else _notes(said, noted))
        print(f"{done} of {total} {plan.of_what}", file=sys.stderr)
    if plan.join and failed:
        left = f"{plan.parts} has the others' rows"
        print(f"{options.output}: not written: {failed} of {len(plan.commands)} groups failed; {left}", file=sys.stderr)
    elif plan.join:
        plan.join()
        shutil.rmtree(plan.parts)
    return 1 if failed else 0


def _notes(said: str, noted: set[str]) -> str:
    """Of what an evaluation says on its way what is not progress: every group says it, and it is passed on once."""
    new = [line for line in said.splitlines(keepends=True) if line.startswith(shard.NOTE) and line not in noted]
    noted.update(new)
    return "".join(new)


def _part_name(files: list[str], flags: list[str]) -> str:
    """Of these files as they are now and these flags: a run that was stopped finds its own parts again, and no others."""
    facts = [(path, stat.st_size, stat.st_mtime_ns) for path in files for stat in [os.stat(path)]]
    return hashlib.sha256(repr((facts, flags)).encode()).hexdigest()[:24] + ".jsonl"


def _join(parts: list[Path], output: Path) -> None:
    """In the order of the files, under the output's name at once."""
    with tempfile.NamedTemporaryFile("wb", dir=output.parent, prefix=f".{output.name}.", delete=False) as joined:
        for part in parts:
            if part.exists():
                joined.write(part.read_bytes())
    os.chmod(joined.name, 0o666 & ~_umask())
    os.replace(joined.name, output)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
