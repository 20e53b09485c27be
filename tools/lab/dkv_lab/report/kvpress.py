"""Results as kvpress keeps them: a folder per task, policy and size with config.yaml, predictions.csv and metrics.json.

Of LongBench alone, whose answers are written out; kvpress scores texts, and the other tasks force an answer.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import yaml

from dkv.errors import UserError

from ..results import read, read_runs, read_written

# Columns of kvpress's predictions for longbench, and ours: which prompt it is.
COLUMNS = ("_id", "task", "question", "answers", "all_classes", "length", "max_new_tokens", "compression_ratio", "predicted_answer")


def write(results: list[Path], folder: Path) -> list[Path]:
    """The folders that were made. Raises UserError."""
    lines = {_which(line): line for line in read(results) if line["task"] == "longbench"}
    written = list({_which(one): one for one in read_written(results) if _which(one) in lines}.values())
    runs = read_runs(results)
    if not written:
        raise UserError("no answer that was written: kvpress's format is of LongBench's tasks: dkv eval MODEL --longbench PATH")
    if len({run["model"]["weights"] for run in runs}) != 1:
        raise UserError(f"{results[0]}: results of one model are needed, with their .runs.json beside them")
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for one in written:
        groups[one["template"], one["policy"], one["capacity"]].append(one | {"line": lines[_which(one)]})
    return [_group(folder, runs[-1], *what, members) for what, members in groups.items()]


def _which(line: dict) -> tuple:
    return line["key"], line["policy"], int(line["capacity"])


def _group(folder: Path, run: dict, task: str, policy: str, capacity: int, members: list[dict]) -> Path:
    geometry = run["model"]["geometry"]
    full = len(geometry["compressed"]) * geometry["kv_heads"]
    ratios = [1 - int(one["line"]["kept"]) / (full * int(one["line"]["tokens"])) for one in members]
    config = _config(run, task, policy, sum(ratios) / len(ratios), members)
    made = _new_folder(folder / _name(config))
    with (made / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for one, ratio in zip(members, ratios):
            entry = one["source"]
            writer.writerow(
                {name: entry.get(name, "") for name in COLUMNS}
                | {"task": task, "question": entry["input"], "max_new_tokens": one["writes"]}
                | {"compression_ratio": f"{ratio:.4f}", "predicted_answer": one["text"]}
            )
    # kvpress's scorer of longbench gives this number alone.
    score = round(100 * sum(float(one["line"]["score"]) for one in members) / len(members), 2)
    (made / "metrics.json").write_text(json.dumps(score, indent=4))
    (made / "config.yaml").write_text(yaml.safe_dump(config, default_flow_style=False, indent=2, sort_keys=False))
    return made


def _config(run: dict, task: str, policy: str, ratio: float, members: list[dict]) -> dict:
    """The fields of kvpress's EvaluationConfig that say something here."""
    return {
        "dataset": "longbench",
        "data_dir": task,
        "model": run["model"]["name"],
        "device": run.get("machine", {}).get("device", "cpu"),
        # Not kvpress's own names: these are dkv's policies, through a dkvd.
        "press_name": "no_press" if policy == "fullkv" else f"dkv_{policy.replace('/', '_')}",
        "compression_ratio": round(ratio, 4),
        "fraction": round(len(members) / members[0]["source"]["rows"], 6),
        "max_context_length": members[0]["source"]["longest"],
        "query_aware": True,  # The question stands in the prompt that is compressed.
        "press_init_command": run["command"],
        "seed": run["seed"],
    }


def _name(config: dict) -> str:
    """As kvpress's get_results_dir() puts it together."""
    parts = [config["dataset"], config["data_dir"], config["model"].replace("/", "--"), config["press_name"], f"{config['compression_ratio']:.2f}"]
    if config["fraction"] < 1:
        parts.append(f"fraction{config['fraction']:.3f}")
    return "__".join([*parts, f"max_context{config['max_context_length']}", "query_aware"])


def _new_folder(path: Path) -> Path:
    """What is there is not written over: 1, 2 … in it, as kvpress does."""
    made, number = path, 0
    while made.exists():
        number += 1
        made = path / str(number)
    made.mkdir(parents=True)
    return made
