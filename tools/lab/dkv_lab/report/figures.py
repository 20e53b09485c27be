"""The figures of a report. Ink is one colour that the page replaces by its own text colour, for light and dark."""

from __future__ import annotations

import math

from dkv.errors import UserError

from .means import Mean, Study, damage, error, mass
from .units import bytes_words, thousands

INK = "#1b1e23"
# Tol's "bright", for all eyes; a policy has its colour and its marker in every figure.
_LOOKS = {
    "dynamickv": ("#4477aa", "o"),
    "snapkv": ("#ee6677", "s"),
    "pyramidkv": ("#228833", "^"),
    "h2o": ("#b59a00", "D"),
    "streamingllm": ("#3bb3d8", "v"),
    "knorm": ("#aa3377", "P"),
    "keydiff": ("#8c8c8c", "X"),
}
_SPARE = [("#e07b00", "<"), ("#6a51a3", ">"), ("#7f5539", "h"), ("#00796b", "*"), ("#c2185b", "p")]
_DASHES = ["-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5))]
_ROWS_MAX = 40  # Of a heat map, that labels can be read.


def pyplot():
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {
        "figure.dpi": 150,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "svg.hashsalt": "dkv",
        "svg.fonttype": "path",
        **{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")},
    }
    return plt


def looks(variants: list[str]) -> dict[str, dict]:
    """Colour and marker by policy; variants of one policy differ in their dashes."""
    spare, out, seen = iter(_SPARE * 20), {}, {}
    policies: dict[str, tuple[str, str]] = {}
    for variant in variants:
        policy = variant.split(" ")[0]
        if policy not in policies:
            policies[policy] = _LOOKS.get(policy) or next(spare)
        colour, marker = policies[policy]
        dash = _DASHES[seen.get(policy, 0) % len(_DASHES)]
        seen[policy] = seen.get(policy, 0) + 1
        out[variant] = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4.5, "linewidth": 1.5}
    return out


# -------------------------------------------------------------------- budgets per layer


def budgets(study: Study, capacity: int | None):
    """A panel per variant: layers across, tasks or prompts down. capacity None: capacities down, of all prompts' mean.

    None where no variant gives layers unlike budgets: there is nothing to see.
    """
    panels = {variant: _heat_rows(study, variant, capacity) for variant in study.variants}
    panels = _like_together({variant: rows for variant, rows in panels.items() if rows})
    if not panels or all(_flat(rows) for rows in panels.values()):
        return None
    plt = pyplot()
    from matplotlib.colors import LogNorm, Normalize

    most_rows = max(map(len, panels.values()))
    layers = max(len(row) for rows in panels.values() for row in rows.values())
    columns = 1 if layers > 48 or len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    high = 0.62 + max(0.55, 0.185 * min(most_rows, _ROWS_MAX))
    size = ((4.6 if columns == 2 else max(5.0, 0.115 * layers + 1.5)) * columns + 1.1, high * lines + 0.9)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    values = [value for rows in panels.values() for row in rows.values() for value in row if value > 0]
    low, top = min(values), max(values)
    norm = LogNorm(low, top) if top > 1.5 * low else Normalize(0, top)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (variant, rows) in zip(axes.flat, panels.items()):
        cells = [[max(value, low) for value in row] + [math.nan] * (layers - len(row)) for row in rows.values()]
        image = axis.pcolormesh(cells, cmap="viridis", norm=norm, edgecolors="face", linewidth=0.1)
        axis.set_title(variant, loc="left", wrap=True)
        axis.invert_yaxis()
        axis.grid(False)
        _layer_ticks(axis, layers)
        _row_labels(axis, list(rows))
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.tick_params(length=0)
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    if columns == 2 and len(panels) % 2:
        axes[-1, -1].set_xlabel("")
        axes[max(0, lines - 2), -1].set_xlabel("layer")
    bar = figure.colorbar(image, ax=axes, label="tokens kept per KV head, mean", shrink=0.9 if lines > 1 else 1.0)
    _colour_ticks(bar, low, top)
    words = "by capacity" if capacity is None else f"at a capacity of {thousands(capacity)} tokens"
    figure.suptitle(f"{_model(study)}budgets per layer {words}", fontsize=10.5)
    return figure


def _heat_rows(study: Study, variant: str, capacity: int | None) -> dict[str, list[float]]:
    if capacity is not None:
        return study.rows_of_heat(variant, capacity)
    out = {}
    for each in study.capacities:
        rows = list(study.rows_of_heat(variant, each).values())
        if rows and len({len(row) for row in rows}) == 1:
            out[thousands(each)] = [sum(column) / len(column) for column in zip(*rows)]
    return out


def _like_together(panels: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Variants that give every layer the same share one panel."""
    out: dict[str, dict[str, list[float]]] = {}
    for variant, rows in panels.items():
        twin = next((name for name, known in out.items() if known == rows), None) if _flat(rows) else None
        if twin is None:
            out[variant] = rows
        else:
            out = {(f"{name}, {variant}" if name == twin else name): known for name, known in out.items()}
    return out


def _flat(rows: dict[str, list[float]]) -> bool:
    return all(max(row) - min(row) < 0.5 for row in rows.values())


def _layer_ticks(axis, layers: int) -> None:
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 64, 128, 256, 512) if layers <= 14 * step)
    axis.set_xticks([layer + 0.5 for layer in range(0, layers, step)], [str(layer) for layer in range(0, layers, step)])


def _row_labels(axis, names: list[str]) -> None:
    step = -(-len(names) // _ROWS_MAX)
    shown = [name if len(name) <= 22 else f"…{name[-21:]}" for name in names]
    axis.set_yticks([row + 0.5 for row in range(0, len(names), step)], shown[::step], fontsize=7.5)


def _colour_ticks(bar, low: float, top: float) -> None:
    from matplotlib.ticker import NullLocator

    steps = [mantissa * 10**power for power in range(-1, 8) for mantissa in (1, 2, 5)]
    inside = [step for step in steps if low * 1.02 <= step <= top * 0.98]
    chosen = inside if len(inside) <= 6 else inside[:: -(-len(inside) // 6)]
    bar.set_ticks([low, *[step for step in chosen if low * 1.25 < step < top / 1.25], top])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.set_yticklabels([thousands(round(tick)) if tick >= 10 else f"{tick:.3g}" for tick in bar.get_ticks()])


# -------------------------------------------------------------------- lines


def damage_against_capacity(study: Study):
    """None without a profile of the model."""
    means = study.means(damage)
    if not means:
        return None
    figure, axis = against_capacity(study.variants, means, lambda value: 100 * value)
    axis.set_ylabel("damage: weighted attention lost, %")
    axis.set_title(f"{_model(study)}damage", loc="left")
    return figure


def mass_against_capacity(study: Study):
    """None without a mass."""
    means = study.means(mass)
    if not means:
        return None
    figure, axis = against_capacity(study.variants, means, lambda value: 100 * value)
    axis.set_ylabel("attention mass kept, %")
    axis.set_title(f"{_model(study)}attention mass kept", loc="left")
    return figure


def error_against_bytes(study: Study):
    """None without queries in the files: then there is no error."""
    means = [mean for mean in study.means(error) if mean.value > 0]
    if not means:
        return None
    figure, axis = _lines(study.variants, means, lambda mean: mean.bytes_kept, lambda value: 100 * value)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    _byte_ticks(axis, [mean.bytes_kept for mean in means])
    _percent_ticks(axis, [100 * each for mean in means for each in (mean.value, mean.low, mean.high) if each > 0])
    axis.set_xlabel("bytes kept of one prompt's K and V")
    axis.set_ylabel("relative L2 error of attention outputs, %")
    axis.set_title(f"{_model(study)}error of attention outputs", loc="left")
    return figure


def against_capacity(variants: list[str], means: list[Mean], y, shaded: str = "all of them"):
    """A line per variant, and what is `shaded` around it; (figure, axis)."""
    figure, axis = _lines(variants, means, lambda mean: mean.capacity, y, shaded)
    _binary_axis(axis, sorted({mean.capacity for mean in means}))
    axis.set_xlabel("capacity: tokens kept per layer and KV head, mean")
    return figure, axis


def _lines(all_variants: list[str], means: list[Mean], x, y, shaded: str = "all of them"):
    plt = pyplot()
    variants = [variant for variant in all_variants if any(mean.variant == variant for mean in means)]
    look = looks(all_variants)
    figure, axis = plt.subplots(figsize=(6.6, 3.7), layout="constrained")
    for variant in variants:
        mine = sorted((mean for mean in means if mean.variant == variant), key=x)
        places = [x(mean) for mean in mine]
        axis.plot(places, [y(mean.value) for mean in mine], label=variant, **look[variant])
        if any(mean.high > mean.low for mean in mine):
            axis.fill_between(
                places, [y(mean.low) for mean in mine], [y(mean.high) for mean in mine],
                color=look[variant]["color"], alpha=0.10, linewidth=0,
            )  # fmt: skip
    axis.legend(
        fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=2.6,
        title=_of_prompts(means, shaded), title_fontsize=7.5, alignment="left",
    )  # fmt: skip
    return figure, axis


def per_layer(study: Study, capacity: int):
    """The error of each layer, and the mass, at one capacity. None without either."""
    plt = pyplot()
    look, common = looks(study.variants), study.common(capacity)
    panels = []
    for title, pick in (("relative L2 error, %", lambda point: point.error_l2), ("attention mass kept, %", lambda point: point.mass)):
        lines = {}
        for variant in study.variants:
            rows = [pick(point) for prompt, point in study.at(variant, capacity).items() if prompt in common]
            if rows and all(rows) and len({len(row) for row in rows}) == 1:
                lines[variant] = [100 * sum(column) / len(column) for column in zip(*rows)]
        if lines:
            panels.append((title, lines))
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels) + 1.4, 3.2), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes.flat, panels):
        for variant, line in lines.items():
            axis.plot(range(len(line)), line, label=variant, **{**look[variant], "markersize": 2.8, "linewidth": 1.1})
        axis.set_xlabel("layer")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda pair: len(pair[1]))
    axes[0, -1].legend(*handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=2.6)
    figure.suptitle(f"{_model(study)}layer by layer at a capacity of {thousands(capacity)} tokens", fontsize=10.5)
    return figure


# -------------------------------------------------------------------- side by side


def side_by_side(study: Study):
    """Policies down, capacities across, the number in each cell. None without mass and error."""
    panels = []
    for title, measure, colours in (
        ("damage, %", damage, "viridis_r"),
        ("attention mass kept, %", mass, "viridis"),
        ("relative L2 error, %", error, "viridis_r"),
    ):
        means = study.means(measure)
        if means:
            panels.append((title, {(mean.variant, mean.capacity): 100 * mean.value for mean in means}, colours))
    if not panels:
        return None
    plt = pyplot()
    longest = max(map(len, study.variants))
    wide = max(2.4, 0.5 * len(study.capacities)) + 0.065 * longest + 0.5
    size = (wide * len(panels) + 0.4, 0.29 * len(study.variants) + 1.15)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, cells, colours) in zip(axes.flat, panels):
        variants = [variant for variant in study.variants if any(variant == name for name, _ in cells)]
        capacities = sorted({capacity for _, capacity in cells})
        grid = [[cells.get((variant, capacity), math.nan) for capacity in capacities] for variant in variants]
        axis.pcolormesh(grid, cmap=colours, edgecolors="white", linewidth=1.2)
        seen = [value for row in grid for value in row if not math.isnan(value)]
        middle = (min(seen) + max(seen)) / 2
        for row, line in enumerate(grid):
            for column, value in enumerate(line):
                if not math.isnan(value):
                    pale = value > middle if colours == "viridis" else value < middle
                    words = f"{value:.1f}" if value < 99.95 else "100"
                    axis.text(
                        column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=7.5,
                        color="#101010" if pale else "#fefefe",
                    )  # fmt: skip
        axis.set_title(title, loc="left")
        axis.set_xticks([place + 0.5 for place in range(len(capacities))], [thousands(each) for each in capacities])
        axis.set_yticks([place + 0.5 for place in range(len(variants))], variants)
        axis.set_xlabel("capacity, tokens")
        axis.invert_yaxis()
        axis.grid(False)
        axis.tick_params(length=0)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"{_model(study)}policies side by side", fontsize=10.5)
    return figure


# -------------------------------------------------------------------- helpers


def _model(study: Study) -> str:
    return f"{study.model}: " if study.model else ""


def _of_prompts(means: list[Mean], shaded: str) -> str:
    fewest, most = min(mean.prompts for mean in means), max(mean.prompts for mean in means)
    if most == 1:
        return ""
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"mean of {count} prompts\nshaded: {shaded}\n"


def _binary_axis(axis, capacities: list[int]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log", base=2)
    shown = [capacities[0]]
    for capacity in capacities[1:]:
        if capacity > 1.3 * shown[-1]:
            shown.append(capacity)
    axis.set_xticks(shown, [thousands(value) for value in shown])
    axis.xaxis.set_minor_locator(NullLocator())


def _byte_ticks(axis, values: list[float]) -> None:
    from matplotlib.ticker import NullLocator

    first, last = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    step = max(1, -(-(last - first) // 8))
    ticks = [2**power for power in range(first, last + 1, step) if 0.9 * min(values) <= 2**power <= 1.1 * max(values)]
    if len(ticks) < 2:
        ticks = sorted(set(values))
    axis.set_xticks(ticks, [bytes_words(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def _percent_ticks(axis, values: list[float]) -> None:
    from matplotlib.ticker import NullFormatter

    steps = [mantissa * 10**power for power in range(-6, 4) for mantissa in (1, 2, 5)]
    inside = [step for step in steps if 0.9 * min(values) <= step <= 1.1 * max(values)]
    if len(inside) >= 2:
        axis.set_yticks(inside, [f"{step:g}" for step in inside])
        axis.yaxis.set_minor_formatter(NullFormatter())
