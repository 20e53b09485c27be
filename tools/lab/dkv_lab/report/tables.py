"""Tables from the evaluation's CSV: means with 95 % intervals, and differences to SnapKV prompt by prompt."""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from ..results import read, read_runs
from . import kvpress

_RESAMPLES = 2000
QUESTIONS = ("shown", "hidden")  # In the prompt's window; after the prompt was compressed.
_FEWEST = 5  # Prompts: below that a bootstrap's interval says nothing.
METRICS = {  # task: (column, title, what is better)
    "needle": [("found", "needle found"), ("logprob", "answer's log-probability")],
    "ruler": [("found", "found")],
    "grid": [("found", "needle found, length × depth")],
    "longbench": [("score", "LongBench's score")],
    "text": [("kl", "KL to the full cache"), ("agree", "top-1 agreement"), ("continuation_nll", "NLL of the continuation")],
}


def bootstrap(statistic: Callable[[list], float], samples: list) -> tuple[float, float, float]:
    """The statistic and its 95 % percentile interval.

    The numbers of docs/eval were drawn by this generator; scipy.stats.bootstrap would draw others.
    """
    draw = random.Random(0).choices
    found = sorted(statistic(draw(samples, k=len(samples))) for _ in range(_RESAMPLES))
    return statistic(samples), found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ratio(pairs: list[tuple[float, float]]) -> float:
    """Of the means of a policy and of what it is compared with, prompt by prompt."""
    return sum(value for value, _ in pairs) / max(1e-12, sum(base for _, base in pairs))


def table(
    lines: list[dict], task: str, column: str, tokens: str | None, template: str | None, against: str, question: str = "shown"
) -> list[dict]:
    """One entry per policy and capacity: n, mean, interval, paired difference. Needles: those the full cache finds."""
    lines = [line for line in lines if line["question"] == question]
    cells: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    sizes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for line in lines:
        if line["task"] != task or tokens not in (None, line["tokens"]) or line.get(column, "") == "" or line["full_found"] == "0":
            continue
        if template is not None and line["template"] != template:
            continue
        cells[line["policy"], int(line["capacity"])][line["key"]] = float(line[column])
        if line.get("bytes"):
            sizes[line["policy"], int(line["capacity"])].append(int(line["bytes"]))
    out = []
    for (policy, capacity), values in cells.items():
        middle, low, high = bootstrap(mean, list(values.values()))
        entry = {"policy": policy, "capacity": capacity, "n": len(values), "mean": middle, "low": low, "high": high}
        if sizes[policy, capacity]:
            entry["bytes"] = round(sum(sizes[policy, capacity]) / len(sizes[policy, capacity]))
        base = cells.get((against, capacity))
        if base is not None and policy != against:
            pairs = [(values[key], base[key]) for key in values if key in base]
            if pairs:
                difference = bootstrap(mean, [value - other for value, other in pairs])
                entry |= dict(zip(("difference", "dlow", "dhigh"), difference))
                if column == "kl":
                    entry |= dict(zip(("ratio", "rlow", "rhigh"), bootstrap(ratio, pairs)))
        out.append(entry)
    return out


def markdown(entries: list[dict], against: str) -> list[str]:
    """A row per policy, a column per capacity: mean [interval], and the paired difference where it excludes zero: *."""
    capacities = sorted({entry["capacity"] for entry in entries} - {0}) or [0]
    rows: dict[str, dict[int, dict]] = defaultdict(dict)
    for entry in entries:
        rows[entry["policy"]][entry["capacity"]] = entry
    heads = [_head(entries, capacity) for capacity in capacities]
    out = ["| policy | " + " | ".join(heads) + " | n |", "| --- |" + " --- |" * (len(capacities) + 1)]
    for policy, cells in rows.items():
        texts = []
        for capacity in capacities:
            entry = cells.get(capacity) or cells.get(0)
            texts.append("" if entry is None else _cell(entry))
        n = max(entry["n"] for entry in cells.values())
        out.append(f"| {policy} | " + " | ".join(texts) + f" | {n} |")
    return [*out, "", f"Brackets: 95 % interval. Δ: paired difference to {against} with its interval; * where it excludes zero."]


def _head(entries: list[dict], capacity: int) -> str:
    """The capacity, and the bytes of K and V that every policy keeps at it."""
    sizes = [entry["bytes"] for entry in entries if entry["capacity"] == capacity and "bytes" in entry]
    return f"{capacity} ({sum(sizes) / len(sizes) / 2**20:.2f} MiB)" if sizes else str(capacity)


def _cell(entry: dict) -> str:
    text = f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    if "difference" in entry:
        star = "*" if entry["n"] >= _FEWEST and (entry["dlow"] > 0 or entry["dhigh"] < 0) else ""
        text += f" Δ {entry['difference']:+.3f} [{entry['dlow']:+.3f}, {entry['dhigh']:+.3f}]{star}"
    if "ratio" in entry:
        text += f" ×{entry['ratio']:.2f} [{entry['rlow']:.2f}, {entry['rhigh']:.2f}]"
    return text


def groups(lines: list[dict], task: str, by_template: bool) -> list[tuple[str, str | None, str | None]]:
    """The (question, tokens, template) of a task's tables. LongBench's prompts are as long as they are: a table per dataset."""
    found = []
    for question in QUESTIONS:
        mine = [line for line in lines if line["task"] == task and line["question"] == question]
        templates = sorted({line["template"] for line in mine}) if by_template or task == "longbench" else []
        lengths = [None] if task == "longbench" else sorted({line["tokens"] for line in mine}, key=int)
        found += [(question, tokens, template) for tokens in lengths for template in [None, *templates]] if mine else []
    return found


def heading(runs: list[dict]) -> str:
    """Whose figures these are."""
    if not runs:
        return ""
    last = runs[-1]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run["seed"] for run in runs))
    versions = last["versions"]
    return (
        f"{last['model']['name']}, weights {last['model']['weights']}, window {last['window']}, seed {seeds}; {last['date']} UTC,"
        f" torch {versions['torch']}, transformers {versions['transformers']}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dkv eval report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--against", default="snapkv", help="what differences are taken to (%(default)s)")
    parser.add_argument("--templates", action="store_true", help="also a table per needle template and kind of text")
    parser.add_argument("--short", action="store_true", help="means alone")
    parser.add_argument("--csv", type=Path, help="write every number of the tables to this file, too")
    parser.add_argument("--json", type=Path, help="the same as JSON")
    parser.add_argument("--note", action="append", default=[], help="a comment line of the CSV: command, seed, date")
    parser.add_argument("--format", choices=("tables", "kvpress"), default="tables", help="kvpress: LongBench's answers as its leaderboard takes them")
    parser.add_argument("-o", "--output", type=Path, help="kvpress: a folder, which gets one per task, policy and size (results)")
    options = parser.parse_args(arguments)
    if options.format == "tables" and options.output is not None:
        parser.error("-o is of --format kvpress: tables are printed, or go to --csv and --json")
    if options.format == "kvpress":
        if options.csv or options.json or options.note:
            parser.error("--csv, --json and --note are of tables")
        options.output = options.output or Path("results")
        print(*kvpress.write(options.results, options.output), sep="\n")
        return 0
    lines, runs, written = read(options.results), read_runs(options.results), []
    if runs:
        print(heading(runs))
    for task, metrics in METRICS.items():
        for question, tokens, template in groups(lines, task, options.templates):
            for column, title in metrics:
                entries = table(lines, task, column, tokens, template, options.against, question)
                where = {"task": task, "template": template or "all", "tokens": tokens or "all", "metric": column}
                where |= {"question": question}
                written += [where | entry for entry in entries]
                if entries:
                    words = [title, f"question {question}", *([f"{tokens} tokens"] if tokens else []), *([template] if template else [])]
                    print(f"\n### {', '.join(words)}\n")
                    print("\n".join(_short(entries) if options.short else markdown(entries, options.against)))
    notes = [*options.note, *([heading(runs)] if runs else []), *(f"{run['date']} {run['command']}" for run in runs)]
    notes.append(f"differences and ratios: paired, to {options.against}; 95 % bootstrap intervals")
    if options.csv is not None:
        write_csv(options.csv, written, notes)
    if options.json is not None:
        options.json.write_text(json.dumps({"notes": notes, "runs": runs, "entries": written}, indent=1) + "\n")
    return 0


def write_csv(path: Path, entries: list[dict], notes: list[str]) -> None:
    columns = "task question template tokens metric policy capacity bytes n mean low high difference dlow dhigh ratio rlow rhigh".split()
    with path.open("w", newline="") as file:
        file.writelines(f"# {note}\n" for note in notes)
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for entry in entries:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in entry.items()})


def _short(entries: list[dict]) -> list[str]:
    capacities = sorted({entry["capacity"] for entry in entries} - {0})
    rows: dict[str, dict[int, dict]] = defaultdict(dict)
    for entry in entries:
        rows[entry["policy"]][entry["capacity"]] = entry
    return [
        f"{policy:44} " + " ".join(f"{(cells.get(c) or cells.get(0))['mean']:8.3f}" for c in capacities if c in cells or 0 in cells)
        + f"  n={max(entry['n'] for entry in cells.values())}"
        for policy, cells in rows.items()
    ]
