"""A small evaluation through a real sidecar that must come out as everybody expects: `make eval-quick`.

    python -m dkv_lab quick [-o FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from dkv.profile_folders import SHIPPED

from . import evaluate, ranges, results
from .report import eval_figures, tables

PROFILE = SHIPPED / "smollm2-135m-instruct.json"
WANTED = {
    "--needles": 5,
    "--ruler": 4,
    "--texts": 6,
    "--tokens": 1024,
    "--seed": 1,
    "--policies": "streamingllm,h2o,snapkv,pyramidkv,dynamickv,profile",
    "--capacity": "64,128,256",
    "--profile": PROFILE,
}


def flags(output: Path, options) -> list[str]:
    wanted = WANTED | {"--output": output}
    if options.threads:
        wanted["--threads"] = options.threads
    return ["smollm2", *(str(word) for pair in wanted.items() for word in pair)]


def problems(lines: list[dict], heads: int) -> list[str]:
    """What did not come out as it must, in words. `heads`: of all compressed layers together."""
    found = []
    means: dict[tuple[str, str, str], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        capacity, kept = int(line["capacity"]), int(line["kept"])
        expected = (capacity or int(line["tokens"])) * heads
        if kept != expected:
            found.append(f"{line['policy']} at {capacity} keeps {kept} rows of {line['key']}, not {expected}")
        if line["policy"] not in ("fullkv", "h2o") and line["through"] != "sidecar":
            found.append(f"{line['policy']} was not chosen by the sidecar")
        for column in ("found", "kl", "agree"):
            if line[column] != "" and line["full_found"] != "0":
                means[line["task"], line["question"], column][line["policy"], capacity].append(float(line[column]))
    for (task, question, column), cells in means.items():
        task = f"{task}, question {question}"
        average = {cell: sum(values) / len(values) for cell, values in cells.items()}
        sign = -1 if column == "kl" else 1
        full = average["fullkv", 0]
        found += [
            f"{task}: {policy} at {capacity} has {column} {value:.4f}, better than the full cache's {full:.4f}"
            for (policy, capacity), value in average.items()
            if sign * (value - full) > 1e-6
        ]
        if column == "kl" and not average["profile", 128] < average["snapkv", 128]:
            found.append(f"{task}: profile's KL {average['profile', 128]:.4f} is no better than SnapKV's {average['snapkv', 128]:.4f}")
    if not any(column == "kl" for *_, column in means):
        found.append("no text was evaluated")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dkv-lab quick", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=ranges.count(1), help="of torch; by default its own choice")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/eval-quick"), help="a folder (%(default)s)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "results.csv"
    for path in (table, results.budgets_path(table), results.runs_path(table)):
        path.unlink(missing_ok=True)
    evaluate.main(flags(table, options))
    tables.main([str(table), "--short", "--csv", str(options.output / "tables.csv")])
    eval_figures.main([str(table), "--profile", str(PROFILE), "-o", str(options.output)])
    lines = results.read([table])
    geometry = results.read_runs([table])[-1]["model"]["geometry"]
    wrong = problems(lines, len(geometry["compressed"]) * geometry["kv_heads"])
    for line in wrong:
        print(f"eval-quick: {line}", file=sys.stderr)
    if not wrong:
        print(f"eval-quick: {len(lines)} rows as they must be, in {options.output}")
    return 1 if wrong else 0
