"""Figures as files, and the page that holds them: one file, nothing from anywhere else."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError

from . import figures, words
from .means import Study, damage, error, mass
from .measured import Judged
from .sweep import Missing
from .units import bytes_words, percent, thousands


@dataclass
class Drawn:
    name: str  # Of its files, without the suffix.
    figure: object
    caption: str
    heading: str = ""
    folded: str = ""  # What the line says that unfolds it; "" stands open.
    svg: str = ""


def draw(study: Study, prefix: str = "") -> list[Drawn]:
    """Every figure that the points allow, in the page's order."""
    sizes = study.capacities
    shown = sizes[len(sizes) // 2]
    out = [
        Drawn("damage-capacity", figures.damage_against_capacity(study), "Further down is better.", "Damage against capacity"),
        Drawn("mass-capacity", figures.mass_against_capacity(study), "Further up is better.", "Attention mass against capacity"),
        Drawn("error-bytes", figures.error_against_bytes(study), "Further down and to the left is better.", "Error against bytes"),
        Drawn("side-by-side", figures.side_by_side(study), "Every number of the figures above.", "Policies side by side"),
    ]
    rows = "tasks" if study.tasks else "prompts"
    many = len(study.tasks or study.prompts) > 1
    heading = "Budgets per layer"
    if not many:
        caption = "Rows are capacities. Equal colours in a row: all layers alike."
        out.append(Drawn("budgets", figures.budgets(study, None), caption, heading))
    for capacity in sorted(sizes, key=lambda each: each != shown) if many else []:
        caption = f"Rows are {rows}. One colour throughout: all layers alike, whatever the prompt."
        folded = "" if capacity == shown else f"at {thousands(capacity)} tokens"
        out.append(Drawn(f"budgets-{capacity}", figures.budgets(study, capacity), caption, "" if folded else heading, folded))
    for capacity in sorted(sizes, key=lambda each: each != shown):
        folded = "" if capacity == shown else f"at {thousands(capacity)} tokens"
        heading = "" if folded else "Layer by layer"
        caption = "Mean of the prompts that every policy has."
        out.append(Drawn(f"layers-{capacity}", figures.per_layer(study, capacity), caption, heading, folded))
    kept = [drawn for drawn in out if drawn.figure is not None]
    for drawn in kept:
        drawn.name = prefix + drawn.name
    return kept


def save(drawn: list[Drawn], folder: Path) -> list[Path]:
    """NAME.svg and NAME.png of each; the page's version goes into its `svg`. The same points give the same bytes."""
    written = []
    for each in drawn:
        vector = io.StringIO()
        each.figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
        each.svg = _inline(vector.getvalue())
        written += [folder / f"{each.name}.svg", folder / f"{each.name}.png"]
        each.figure.savefig(written[-2], facecolor="white", metadata={"Date": None})
        each.figure.savefig(written[-1], facecolor="white", metadata={"Software": None})
        figures.pyplot().close(each.figure)
    return written


def write(path: Path, title: str, studies: list[tuple[Study, list[Missing], list[Drawn], Judged | None]], sources: list[str]) -> None:
    """Whole under its name or not at all."""
    try:
        from jinja2 import Environment, FileSystemLoader
    except ImportError:
        raise UserError("a report needs jinja2: pip install jinja2") from None
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= {"thousands": thousands, "bytes": bytes_words, "percent": percent}
    parts = [_part(*each) for each in studies]
    text = environment.get_template("page.html").render(title=title, parts=parts, sources=sources, judged=any(part["judged"] for part in parts))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _part(study: Study, missing: list[Missing], drawn: list[Drawn], judged: Judged | None) -> dict:
    best = words.best_by_size(study)
    return {
        "model": study.model,
        "summary": [*(judged.summary() if judged else []), *words.summary(study, missing)],
        "judged": judged.rows if judged else [],
        "best": best,
        "with_damage": any(row.damage is not None for row in best),
        "with_mass": any(row.mass is not None for row in best),
        "with_error": any(row.error is not None for row in best),
        "figures": drawn,
        "rows": _rows(study),
    }


def _rows(study: Study) -> list[dict]:
    rows: dict[tuple[str, int], dict] = {}
    nothing: Callable = lambda point: 0.0  # Every point has it: so that sizes are told without queries, too.
    for name, measure in (("", nothing), ("damage", damage), ("mass", mass), ("error", error)):
        for mean in study.means(measure):
            row = rows.setdefault(
                (mean.variant, mean.capacity),
                {key: getattr(mean, key) for key in ("variant", "capacity", "bytes_kept", "share", "prompts")}
                | dict.fromkeys(("damage", "mass", "error")),
            )
            if name:
                row[name] = mean.value
    return sorted(rows.values(), key=lambda row: (study.variants.index(row["variant"]), row["capacity"]))


def _inline(svg: str) -> str:
    """Without what only a file needs, and with the page's colour of text for ink."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    return body.replace(figures.INK, "currentColor")
