"""The papers' figures from an evaluation's CSV: needle heat maps, budgets per layer, quality against capacity.

    python -m dkv.lab.evaluate figures results.csv [--profile p.json] -o FOLDER
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import torch

from . import profile as profiles
from . import report, results

_DEPTHS = 5  # Rows of a heat map, when the depths are not those of a grid.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")  # Tol's, for all eyes.


class FigureError(RuntimeError):
    """matplotlib is not there."""


def pyplot():
    try:
        import matplotlib
    except ImportError:
        raise FigureError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"figure.dpi": 130, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    return plt


# -------------------------------------------------------------------- needles: length × depth


def heat_cells(lines: list[dict], task: str, policy: str, capacity: int, depths: list[float], lengths: list[int]):
    """Mean of found per (depth bin, length); nan where nothing fell."""
    sums = defaultdict(list)
    for line in lines:
        if line["task"] == task and line["policy"] == policy and int(line["capacity"]) == capacity and line.get("depth"):
            nearest = min(range(len(depths)), key=lambda i: abs(depths[i] - float(line["depth"])))
            sums[nearest, int(line["tokens"])].append(float(line["found"]))
    return [
        [sum(sums[row, n]) / len(sums[row, n]) if sums[row, n] else math.nan for n in lengths] for row in range(len(depths))
    ]


def heat_maps(lines: list[dict], task: str, capacity: int, title: str):
    """A panel per policy, the full cache first."""
    plt = pyplot()
    mine = [line for line in lines if line["task"] == task and line.get("depth")]
    lengths = sorted({int(line["tokens"]) for line in mine})
    known = sorted({round(float(line["depth"]), 1) for line in mine})
    depths = known if len(known) <= 11 else [(i + 0.5) / _DEPTHS for i in range(_DEPTHS)]
    policies = list(dict.fromkeys(line["policy"] for line in mine if int(line["capacity"]) in (0, capacity)))
    columns = min(4, len(policies))
    rows = -(-len(policies) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns + 0.6, 2.2 * rows + 0.7), squeeze=False, layout="constrained")
    for axis in axes.flat[len(policies) :]:
        axis.axis("off")
    for axis, policy in zip(axes.flat, policies):
        cells = heat_cells(mine, task, policy, 0 if policy == "fullkv" else capacity, depths, lengths)
        image = axis.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        seen = [value for row in cells for value in row if not math.isnan(value)]
        axis.set_title(f"{policy}: {sum(seen) / len(seen):.2f}" if seen else policy, fontsize=9)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45 if len(lengths) > 4 else 0)
        axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        if len(lengths) * len(depths) <= 60:
            for y, row in enumerate(cells):
                for x, value in enumerate(row):
                    if not math.isnan(value):
                        colour = "white" if value < 0.15 or value > 0.85 else "black"
                        axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    figure.supxlabel("tokens of the prompt")
    figure.supylabel("depth of the needle")
    figure.suptitle(title)
    figure.colorbar(image, ax=axes, label="found", shrink=0.8)
    return figure


# -------------------------------------------------------------------- budgets


def mean_budgets(entries: list[dict], task: str, policy: str, capacity: int) -> torch.Tensor | None:
    """[layers, heads], the mean over a task's prompts."""
    chosen = [e["budgets"] for e in entries if (e["task"], e["policy"], e["capacity"]) == (task, policy, capacity)]
    return torch.tensor(chosen, dtype=torch.float64).mean(0) if chosen else None


def budget_lines(entries: list[dict], capacity: int, policies: list[str], title: str):
    """A panel per task: the mean prefix tokens of each layer, a line per policy."""
    plt = pyplot()
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks) + 0.4, 3.1), squeeze=False, sharey=True, layout="constrained")
    for axis, task in zip(axes.flat, tasks):
        for colour, policy in zip(_COLOURS * 3, policies):
            mean = mean_budgets(entries, task, policy, capacity)
            if mean is not None:
                axis.plot(range(mean.shape[0]), mean.mean(1).tolist(), marker=".", color=colour, label=policy, linewidth=1.2)
        axis.set_title(task)
        axis.set_xlabel("layer")
        axis.set_yscale("symlog", linthresh=16)
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("prefix tokens, mean over heads")
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    return figure


def head_map(values, title: str, label: str):
    """Layers across, heads down."""
    plt = pyplot()
    from matplotlib.colors import LogNorm

    cells = torch.as_tensor(values, dtype=torch.float64).T
    low = float(cells[cells > 0].min()) if bool((cells > 0).any()) else 1.0
    wide = max(4.0, 0.28 * cells.shape[1] + 1.5)
    figure, axis = plt.subplots(figsize=(wide, 0.32 * cells.shape[0] + 1.3), layout="constrained")
    image = axis.imshow(cells.clamp_min(low).numpy(), cmap="viridis", aspect="auto", norm=LogNorm(low, max(float(cells.max()), 1.001 * low)))
    axis.set_xlabel("layer")
    axis.set_ylabel("KV head")
    axis.set_yticks(range(cells.shape[0]))
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, label=label)
    return figure


def ragged_maps(entries: list[dict], capacity: int, policies: list[str], model: str) -> dict:
    """Layer × head of every policy whose heads get unlike budgets: per task, once where all tasks get the same."""
    drawn, seen = {}, []
    for policy in policies:
        for task in dict.fromkeys(entry["task"] for entry in entries):
            mean = mean_budgets(entries, task, policy, capacity)
            if mean is None or bool((mean == mean[:, :1]).all()) or any(torch.equal(mean, other) for other in seen):
                continue
            seen.append(mean)
            title = f"{model}: {policy}, {capacity} tokens, {task}"
            drawn[f"heads-{policy.replace('/', '-')}-{task}-{capacity}"] = head_map(mean, title, "prefix tokens")
    return drawn


# -------------------------------------------------------------------- quality against capacity


def quality(lines: list[dict], task: str, column: str, tokens: str, title: str, against: str = "snapkv"):
    """A line per policy with its 95 % interval; the full cache as a dashed line."""
    plt = pyplot()
    from matplotlib.ticker import NullLocator

    entries = report.table(lines, task, column, tokens, None, against)
    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    policies = [name for name in dict.fromkeys(entry["policy"] for entry in entries) if name != "fullkv"]
    for number, policy in enumerate(policies):
        mine = sorted((e for e in entries if e["policy"] == policy), key=lambda e: e["capacity"])
        beside = 2 ** (0.05 * (number - (len(policies) - 1) / 2))  # So that the intervals stand side by side.
        around = [[max(0, e["mean"] - e["low"]) for e in mine], [max(0, e["high"] - e["mean"]) for e in mine]]
        look = {"marker": "o", "markersize": 3, "color": _COLOURS[number % len(_COLOURS)], "elinewidth": 0.7, "capsize": 1.5}
        label = f"{policy} (n = {mine[0]['n']})"
        axis.errorbar([beside * e["capacity"] for e in mine], [e["mean"] for e in mine], around, label=label, linewidth=1.2, **look)
    for entry in entries:
        if entry["policy"] == "fullkv" and column != "kl":
            axis.axhline(entry["mean"], color="black", linestyle="--", linewidth=0.8, label="fullkv")
    axis.set_xscale("log", base=2)
    capacities = sorted({entry["capacity"] for entry in entries} - {0})
    if not capacities:
        plt.close(figure)
        return None
    axis.set_xticks(capacities, [str(value) for value in capacities])
    axis.xaxis.set_minor_locator(NullLocator())
    if column == "kl":
        axis.set_yscale("log")
    axis.set_xlabel("tokens kept per layer and KV head, mean")
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# -------------------------------------------------------------------- all of them


def draw_all(paths: list[Path], folder: Path, kind: str, made: list[profiles.Profile]) -> list[Path]:
    lines, entries, runs = results.read(paths), results.read_budgets(paths), results.read_runs(paths)
    model = runs[-1]["model"]["name"] if runs else ""
    capacities = sorted({int(line["capacity"]) for line in lines} - {0})
    drawn = {}
    for task in dict.fromkeys(line["task"] for line in lines if line.get("depth")):
        for capacity in capacities:
            drawn[f"{task}-{capacity}"] = heat_maps(lines, task, capacity, f"{model}: {task}, {capacity} tokens")
    policies = [name for name in dict.fromkeys(entry["policy"] for entry in entries) if name not in ("h2o", "streamingllm")]
    for capacity in capacities if entries else []:
        drawn[f"budgets-{capacity}"] = budget_lines(entries, capacity, policies, f"{model}: budgets per layer, {capacity} tokens")
    for capacity in capacities:
        drawn |= ragged_maps(entries, capacity, policies, model)
    for task, metrics in report.METRICS.items():
        for tokens in sorted({line["tokens"] for line in lines if line["task"] == task}, key=int):
            for column, title in metrics:
                if any(line.get(column) for line in lines if line["task"] == task and line["tokens"] == tokens):
                    name = f"{task}-{column.replace('_', '-')}-{tokens}"
                    drawn[name] = quality(lines, task, column, tokens, f"{model}: {title}, {tokens} tokens")
    for one in made:
        weights = torch.tensor(one.weights)
        drawn[f"profile-{one.model['name'].lower()}"] = head_map(weights, f"{one.model['name']}: profile", "weight")
    written = []
    for name, figure in drawn.items():
        if figure is None:  # Nothing to compare: the full cache found nothing.
            continue
        written.append(folder / f"{name}.{kind}")
        figure.savefig(written[-1])
        pyplot().close(figure)
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dkv.lab.evaluate figures", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--profile", type=Path, action="append", default=[], help="draw this profile, too")
    parser.add_argument("--format", choices=("png", "svg"), default="png")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"), help="a folder (%(default)s)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    made = [profiles.load(path) for path in options.profile]
    for path in draw_all(options.results, options.output, options.format, made):
        print(path)
    return 0
