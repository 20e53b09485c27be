"""The figures of an evaluation: needle heat maps, budgets per layer, quality against capacity.

    dkv eval figures results.csv [--profile p.json] -o FOLDER
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

from dkv.hf import profile_file

from .. import results
from . import figures, tables
from .means import Mean, Study
from .sweep import Point

_DEPTHS = 5  # Rows of a heat map, when the depths are not those of a grid.


# -------------------------------------------------------------------- needles: length × depth


def heat_cells(lines: list[dict], policy: str, capacity: int, depths: list[float], lengths: list[int]):
    """Mean of found per (depth bin, length); nan where nothing fell."""
    sums = defaultdict(list)
    for line in lines:
        if line["policy"] == policy and int(line["capacity"]) == capacity:
            nearest = min(range(len(depths)), key=lambda i: abs(depths[i] - float(line["depth"])))
            sums[nearest, int(line["tokens"])].append(float(line["found"]))
    return [
        [sum(sums[row, n]) / len(sums[row, n]) if sums[row, n] else math.nan for n in lengths] for row in range(len(depths))
    ]


def heat_maps(lines: list[dict], capacity: int, title: str):
    """A panel per policy, the full cache first. `lines`: of one task, with depths."""
    plt = figures.pyplot()
    lengths = sorted({int(line["tokens"]) for line in lines})
    known = sorted({round(float(line["depth"]), 1) for line in lines})
    depths = known if len(known) <= 11 else [(i + 0.5) / _DEPTHS for i in range(_DEPTHS)]
    policies = list(dict.fromkeys(line["policy"] for line in lines if int(line["capacity"]) in (0, capacity)))
    columns = min(4, len(policies))
    rows = -(-len(policies) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns + 0.6, 2.2 * rows + 0.7), squeeze=False, layout="constrained")
    for axis in axes.flat[len(policies) :]:
        axis.axis("off")
    for axis, policy in zip(axes.flat, policies):
        cells = heat_cells(lines, policy, 0 if policy == "fullkv" else capacity, depths, lengths)
        image = axis.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.grid(False)
        seen = [value for row in cells for value in row if not math.isnan(value)]
        axis.set_title(f"{policy}: {sum(seen) / len(seen):.2f}" if seen else policy)
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


# -------------------------------------------------------------------- a profile


def profile_map(made: profile_file.Profile):
    """What each layer and KV head is worth: layers across, heads down."""
    plt = figures.pyplot()
    from matplotlib.colors import LogNorm

    cells = list(zip(*made.weights))
    values = [value for row in cells for value in row]
    low = min(value for value in values if value > 0)
    figure, axis = plt.subplots(figsize=(max(4.0, 0.28 * len(made.weights) + 1.5), 0.32 * len(cells) + 1.3), layout="constrained")
    norm = LogNorm(low, max(max(values), 1.001 * low))
    image = axis.imshow([[max(value, low) for value in row] for row in cells], cmap="viridis", aspect="auto", norm=norm)
    axis.grid(False)
    axis.set_xlabel("layer")
    axis.set_ylabel("KV head")
    axis.set_yticks(range(len(cells)))
    axis.set_title(f"{made.model['name']}: profile")
    figure.colorbar(image, label="weight")
    return figure


# -------------------------------------------------------------------- quality against capacity


def quality(lines: list[dict], task: str, question: str, column: str, tokens: str, title: str):
    """A line per policy with its 95 % interval; the full cache as a dashed line. None where only it was measured."""
    entries = tables.table(lines, task, column, tokens, None, "snapkv", question)
    cut = [entry for entry in entries if entry["policy"] != "fullkv"]
    if not cut:
        return None
    means = [
        Mean(e["policy"], e["capacity"], e["mean"], max(0, e["low"]) if column == "kl" else e["low"], e["high"], e["n"], 0, 0)
        for e in cut
    ]
    variants = list(dict.fromkeys(mean.variant for mean in means))
    figure, axis = figures.against_capacity(variants, means, lambda value: value, "95 % interval")
    for entry in entries:
        if entry["policy"] == "fullkv" and column != "kl":
            axis.axhline(entry["mean"], color=figures.INK, linestyle="--", linewidth=0.8)
    if column == "kl":
        axis.set_yscale("log")
    axis.set_title(title, loc="left")
    return figure


# -------------------------------------------------------------------- all of them


def budgets_study(entries: list[dict], model: str, window: int) -> Study:
    """What every policy kept, as `dkv report` takes it."""
    points = [
        Point(
            file=e["key"], task=e["task"], model=model, prompt_tokens=int(e["tokens"]), policy=e["policy"], params=(),
            capacity=e["capacity"], bytes_kept=0, bytes_full=0, damage=None, mass=None, error_l2=None,
            lengths=tuple(tuple(window + kept for kept in heads) for heads in e["budgets"]),
        )
        for e in entries
    ]  # fmt: skip
    return Study(model, points)


def draw_all(paths: list[Path], made: list[profile_file.Profile]) -> dict:
    """Figures by name; None where there is nothing to see."""
    lines, entries, runs = results.read(paths), results.read_budgets(paths), results.read_runs(paths)
    model = runs[-1]["model"]["name"] if runs else ""
    drawn = {}
    shown = [line for line in lines if line["question"] == "shown"]
    for task in dict.fromkeys(line["task"] for line in shown if line.get("depth")):
        mine = [line for line in shown if line["task"] == task and line.get("depth")]
        for capacity in sorted({int(line["capacity"]) for line in mine} - {0}):
            drawn[f"{task}-{capacity}"] = heat_maps(mine, capacity, f"{model}: {task}, {capacity} tokens")
    study = budgets_study(entries, model, runs[-1]["window"] if runs else 0)
    for capacity in study.capacities:
        drawn[f"budgets-{capacity}"] = figures.budgets(study, capacity)
    for task, metrics in tables.METRICS.items():
        for question, tokens, _ in [group for group in tables.groups(lines, task, False) if group[1]]:
            mine = [line for line in lines if (line["task"], line["question"], line["tokens"]) == (task, question, tokens)]
            for column, title in metrics:
                if any(line.get(column) for line in mine):
                    name = f"{task}-{column.replace('_', '-')}-{tokens}" + ("-hidden" if question == "hidden" else "")
                    drawn[name] = quality(mine, task, question, column, tokens, f"{model}: {title}, question {question}, {tokens} tokens")
    return drawn | {f"profile-{one.model['name'].lower()}": profile_map(one) for one in made}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dkv eval figures", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--profile", type=Path, action="append", default=[], help="draw this profile, too")
    parser.add_argument("--format", choices=("png", "svg"), default="png")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"), help="a folder (%(default)s)")
    options = parser.parse_args(arguments)
    drawn = draw_all(options.results, [profile_file.load(path) for path in options.profile])
    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        if figure is not None:
            path = options.output / f"{name}.{options.format}"
            figure.savefig(path)
            print(path)
            figures.pyplot().close(figure)
    return 0
