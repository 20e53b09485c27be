"""Tables from the evaluation's CSV: means with 95 % intervals, and differences to SnapKV prompt by prompt."""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path

_RESAMPLES = 2000
METRICS = {  # task: (column, title, what is better)
    "needle": [("found", "needle found"), ("logprob", "answer's log-probability")],
    "ruler": [("found", "found")],
    "text": [("kl", "KL to the full cache"), ("agree", "top-1 agreement"), ("continuation_nll", "NLL of the continuation")],
}


def read(paths: list[Path]) -> list[dict]:
    lines = []
    for path in paths:
        with path.open() as file:
            lines += csv.DictReader(file)
    return lines


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and the bootstrap's 95 % interval of it."""
    mean = sum(values) / len(values)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(_RESAMPLES))
    return mean, means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]


def ratio_interval(values: list[float], base: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of the means, prompts resampled in pairs."""
    rng, pairs, ratios = random.Random(seed), list(zip(values, base)), []
    for _ in range(_RESAMPLES):
        sample = rng.choices(pairs, k=len(pairs))
        ratios.append(sum(v for v, _ in sample) / max(1e-12, sum(b for _, b in sample)))
    ratios.sort()
    return sum(values) / max(1e-12, sum(base)), ratios[int(0.025 * _RESAMPLES)], ratios[int(0.975 * _RESAMPLES) - 1]


def table(lines: list[dict], task: str, column: str, tokens: str, template: str | None, against: str) -> list[dict]:
    """One entry per policy and capacity: n, mean, interval, paired difference. Needles: those the full cache finds."""
    cells: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line["task"] != task or line["tokens"] != tokens or line[column] == "" or line["full_found"] == "0":
            continue
        if template is not None and line["template"] != template:
            continue
        cells[line["policy"], int(line["capacity"])][line["key"]] = float(line[column])
    out = []
    for (policy, capacity), values in cells.items():
        mean, low, high = interval(list(values.values()))
        entry = {"policy": policy, "capacity": capacity, "n": len(values), "mean": mean, "low": low, "high": high}
        base = cells.get((against, capacity))
        if base is not None and policy != against:
            shared = [key for key in values if key in base]
            if shared:
                difference, dlow, dhigh = interval([values[key] - base[key] for key in shared])
                entry |= {"difference": difference, "dlow": dlow, "dhigh": dhigh}
                if column == "kl":
                    ratio, rlow, rhigh = ratio_interval([values[k] for k in shared], [base[k] for k in shared])
                    entry |= {"ratio": ratio, "rlow": rlow, "rhigh": rhigh}
        out.append(entry)
    return out


def markdown(entries: list[dict], against: str) -> list[str]:
    """A row per policy, a column per capacity: mean [interval], and the paired difference where it excludes zero: *."""
    capacities = sorted({entry["capacity"] for entry in entries} - {0})
    rows: dict[str, dict[int, dict]] = defaultdict(dict)
    for entry in entries:
        rows[entry["policy"]][entry["capacity"]] = entry
    out = ["| policy | " + " | ".join(map(str, capacities)) + " | n |", "| --- |" + " --- |" * (len(capacities) + 1)]
    for policy, cells in rows.items():
        texts = []
        for capacity in capacities:
            entry = cells.get(capacity) or cells.get(0)
            texts.append("" if entry is None else _cell(entry))
        n = max(entry["n"] for entry in cells.values())
        out.append(f"| {policy} | " + " | ".join(texts) + f" | {n} |")
    return [*out, "", f"Brackets: 95 % interval. Δ: paired difference to {against} with its interval; * where it excludes zero."]


def _cell(entry: dict) -> str:
    text = f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    if "difference" in entry:
        star = "*" if entry["dlow"] > 0 or entry["dhigh"] < 0 else ""
        text += f" Δ {entry['difference']:+.3f} [{entry['dlow']:+.3f}, {entry['dhigh']:+.3f}]{star}"
    if "ratio" in entry:
        text += f" ×{entry['ratio']:.2f} [{entry['rlow']:.2f}, {entry['rhigh']:.2f}]"
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dkv.lab.evaluate report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--against", default="snapkv", help="what differences are taken to (%(default)s)")
    parser.add_argument("--templates", action="store_true", help="also a table per needle template and kind of text")
    parser.add_argument("--short", action="store_true", help="means alone")
    parser.add_argument("--csv", type=Path, help="write every number of the tables to this file, too")
    parser.add_argument("--note", action="append", default=[], help="a comment line of that file: command, seed, date")
    options = parser.parse_args(arguments)
    lines = read(options.results)
    written = []
    for task, metrics in METRICS.items():
        for tokens in sorted({line["tokens"] for line in lines if line["task"] == task}, key=int):
            templates = sorted({line["template"] for line in lines if line["task"] == task}) if options.templates else []
            for column, title in metrics:
                for template in [None, *templates]:
                    entries = table(lines, task, column, tokens, template, options.against)
                    written += [
                        {"task": task, "template": template or "all", "tokens": tokens, "metric": column} | entry
                        for entry in entries
                    ]
                    if entries:
                        name = f", {template}" if template else ""
                        print(f"\n### {title}, {tokens} tokens{name}\n")
                        print("\n".join(_short(entries) if options.short else markdown(entries, options.against)))
    if options.csv is not None:
        write_csv(options.csv, written, [*options.note, f"differences and ratios: paired, to {options.against}; 95 % bootstrap intervals"])
    return 0


def write_csv(path: Path, entries: list[dict], notes: list[str]) -> None:
    columns = "task template tokens metric policy capacity n mean low high difference dlow dhigh ratio rlow rhigh".split()
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
