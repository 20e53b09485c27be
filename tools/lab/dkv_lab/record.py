"""What an evaluation was made with: from the record beside a CSV, `dkv eval --again RECORD` makes the same CSV."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import dkv
from dkv.errors import UserError
from dkv.hf.profile_file import Profile
from dkv.programs import HERE

from .needles import Row
from .results import runs_path

# Of an entry, what a difference in is said, and does not stop the run.
_COMPARED = ("versions", "machine", "model", "attention", "dtype")


class RecordError(UserError):
    """Not a record that an evaluation can be made from again."""


def start(described: dict, arguments: list[str], options, model, attention: str) -> dict:
    """What is known before the first prompt."""
    import transformers

    known = commit()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["dkv", "eval", *arguments]),
        "arguments": arguments,
        "shard": f"{options.shard.index}/{options.shard.count}",
        "model": described,
        "seed": options.seed,
        "window": options.window,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention,
        "profiles": {},
        "versions": {
            "dkv": dkv.library_version(),
            **({"commit": known} if known else {}),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(model.device)},
    }


def prompts_hash(rows: list[Row]) -> str:
    """Of all that a row's lines depend on but for a judge."""
    facts = [(row.key, row.task, list(row.tokens), list(row.answer), row.continuation, row.writes, row.asks) for row in rows]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def profile_hash(profile: Profile) -> str:
    """Of what a policy reads of it: a certificate may be added to its figures."""
    read = (profile.granularity, profile.alpha, profile.floor, profile.weights, profile.kernel, profile.surrogate)
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def note(results: Path, entry: dict) -> None:
    """Adds to the runs that wrote into this file."""
    path = runs_path(results)
    runs = json.loads(path.read_text()) if path.exists() else []
    _write(path, [*runs, entry])


def note_end(results: Path) -> None:
    """The last run has all its prompts, and this is the CSV."""
    path = runs_path(results)
    runs = json.loads(path.read_text())
    runs[-1]["csv"] = file_hash(results)
    _write(path, runs)


def _write(path: Path, runs: list[dict]) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(runs, indent=1) + "\n")
    os.replace(scratch, path)


def to_make_again(path: Path) -> list[dict]:
    """The runs in their order; of one that was stopped and gone on with, its last. Raises RecordError."""
    try:
        runs = json.loads(path.read_text())
        groups = [list(group) for _, group in itertools.groupby(runs, lambda run: (run["arguments"], run["shard"]))]
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise RecordError(f"{path} is not a record: dkv eval writes one beside its CSV, NAME.runs.json") from None
    except KeyError as missing:
        raise RecordError(f"{path} has a run without {missing}: an earlier dkv made it, and it cannot be made again") from None
    if not groups:
        raise RecordError(f"{path} has no run")
    for last in (group[-1] for group in groups):
        if "csv" not in last:
            raise RecordError(f"{path}: the run of {last['date']} was not finished: {last['command']} goes on with it")
    return [group[-1] for group in groups]


def differences(was: dict, now: dict) -> list[str]:
    """What is not as in the record, by name, in words."""
    out = []
    for part in _COMPARED:
        before, after = was.get(part), now.get(part)
        if not isinstance(before, dict):
            before, after = {part: before}, {part: after}
        out += [f"{key} was {before.get(key)} and is {after.get(key)}" for key in {**before, **after} if before.get(key) != after.get(key)]
    return out


def check(was: dict, now: dict) -> None:
    """Raises RecordError where the same CSV cannot come out."""
    if was["model"].get("weights") != now["model"]["weights"]:
        raise RecordError(f"the record is of weights {was['model'].get('weights')}; {now['model']['name']} has {now['model']['weights']}")
    for name in {**was["profiles"], **now["profiles"]}:
        if was["profiles"].get(name) != now["profiles"].get(name):
            raise RecordError(f"profile {name} is not the record's: {now['profiles'].get(name)}, and it was {was['profiles'].get(name)}")
    if was.get("certificate") != now.get("certificate"):
        raise RecordError(f"the profile's certificate is not the record's: {now.get('certificate')}, and it was {was.get('certificate')}")
    if was["prompts"] != now["prompts"]:
        raise RecordError("the prompts are not the record's: they are cut from texts of the machine, and this one has others")


def say(words: str) -> None:
    print(f"dkv eval: {words}", file=sys.stderr, flush=True)


def compare(results: Path, was: dict) -> bool:
    """Whether the CSV is the record's, said in words."""
    found = file_hash(results)
    if found == was["csv"]:
        say(f"{results}: the record's CSV, byte for byte")
        return True
    say(f"{results}: not the record's CSV: its SHA-256 is {found}, and was {was['csv']}")
    return False


def commit() -> str | None:
    """Of the sources that this package lies in; None of an installed one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True, text=True
        )
    except OSError:
        return None
    inside = (HERE.parents[2] / ".git").exists()
    return done.stdout.strip() if inside and done.returncode == 0 else None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
