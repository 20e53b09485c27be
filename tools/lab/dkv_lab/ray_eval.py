"""What `dkv-lab ray` hands to its workers; of eval, the prompts by groups, and the CSV that one process would write."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError


@dataclass
class Plan:
    """Commands that make parts, and what makes the output of them."""

    parts: Path
    commands: list[list[str]]
    sizes: list[int]  # Files or prompts of each command.
    of_what: str
    join: Callable[[], None] | None  # None: the parts are the output.


def plan(options: argparse.Namespace) -> Plan:
    """The groups are the shards of `dkv eval`; each loads the model once."""
    from dkv.hf import models

    from . import evaluate
    from .shard import Shard

    # The same sums in every worker, and in one process with this flag.
    flags = options.flags if any(flag.split("=", 1)[0] == "--threads" for flag in options.flags) else [*options.flags, "--threads", "1"]
    arguments = [*options.files, *flags]
    made = evaluate.parse(arguments)
    rows = evaluate.rows_for(models.load_tokenizer(made.model), made)
    count = max(1, -(-len(rows) // options.group))
    shares = [[row for row in rows if Shard(index, count).has(row)] for index in range(count)]
    chosen = [index for index, share in enumerate(shares) if share]
    name = hashlib.sha256(json.dumps([arguments, count, os.getcwd()]).encode()).hexdigest()[:12]
    parts = options.output.with_name(f".{options.output.name}.parts")
    outputs = [parts / f"{name}-{index}.csv" for index in chosen]
    commands = [
        [sys.executable, "-m", "dkv_lab", "eval", *arguments, "--shard", f"{index}/{count}", "-o", str(output)]
        for index, output in zip(chosen, outputs)
    ]
    given = [shares[index] for index in chosen]
    join_parts = lambda: join(rows, dict(zip(outputs, given)), options.output, arguments)  # noqa: E731
    return Plan(parts, commands, list(map(len, given)), "prompts", join_parts)


def join(rows: list, shares: dict[Path, list], output: Path, arguments: list[str]) -> None:
    """The undivided run's CSV, what lies beside it, and its record. Raises UserError for a part that is not of this run."""
    parts = list(shares)
    from . import record, results

    # Of a part that was stopped and gone on with, each run.
    entries = [(part, entry) for part in parts for entry in results.read_runs([part])]
    recorded = dict(entries)
    for part in parts:
        if part not in recorded:
            raise UserError(f"{part}: there is no record of the run beside it: remove {part.parent} and run again")
    first = entries[0][1]
    for part, entry in entries:
        for fact in ("model", "profiles", "versions", "certificate"):
            if entry.get(fact) != first.get(fact):
                raise UserError(f"{part}: other {fact} than {parts[0]}: remove {part.parent} and run again")
        if entry["prompts"] != record.prompts_hash(shares[part]):
            raise UserError(f"{part}: its prompts are not those of this machine: they are cut from a machine's texts, and a worker has others")
    place = {key: index for index, row in enumerate(rows) for key in row.keys}
    for beside in (results.budgets_path, results.written_path):
        lines = [line for part in parts if beside(part).exists() for line in beside(part).read_text().splitlines(keepends=True)]
        if lines:
            beside(output).write_text("".join(sorted(lines, key=lambda line: place[json.loads(line)["key"]])))
    heading, lines = "", []
    for part in parts:
        heading, *found = part.read_bytes().decode().splitlines(keepends=True)
        lines += found
    scratch = output.with_name(f".{output.name}.part")
    scratch.write_bytes((heading + "".join(sorted(lines, key=lambda line: place[line.split(",", 1)[0]]))).encode())
    os.replace(scratch, output)
    whole = {"command": shlex.join(["dkv", "eval", *arguments]), "arguments": arguments, "shard": "0/1", "prompts": record.prompts_hash(rows)}
    record.note(output, first | whole)
    record.note_end(output)
