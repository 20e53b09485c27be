"""Profiles from what others have measured of a model's KV heads: `dkv profile import SOURCE --model MODEL -o FILE`.

    a folder with full_attention_heads.tsv and config.json   DuoAttention: each KV head's gate, 0 … 1
    FILE.json with keys L0H0, L0H1 …                         Attention Matching: each KV head's share of the budget
    FILE.pt, or several                                      KVzip: a head score [layers, KV heads]; of several the maximum
    FILE.npy, with --ratio                                   LU-KV: what each KV head drops at each ratio, [99, layers, KV heads]

The numbers become the profile's weights. What a number cannot say is said in the recipe and by `dkv profile show`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from . import models, profile_file
from .profile_file import Geometry, ProfileError


@dataclass(frozen=True)
class Imported:
    method: str
    weights: list[list[float]]  # [compressed layers][KV heads]
    floor: float
    facts: dict  # Of the source, for the recipe.


def read(sources: list[Path], geometry: Geometry, ratio: float | None = None) -> Imported:
    """Raises ProfileError for what is none of these, or is of another geometry. ratio: the share that is kept, of LU-KV's tables."""
    first = sources[0]
    if (first.suffix == ".npy") != (ratio is not None):
        raise ProfileError(f"{first}: --ratio goes with LU-KV's FILE.npy, which has a table for each ratio, and it needs one")
    if all(source.suffix == ".pt" for source in sources):
        return _kvzip(sources, geometry)
    if len(sources) > 1:
        raise ProfileError(f"{first}: only KVzip's head scores, FILE.pt, can be several files")
    if first.is_dir():
        return _duo(first, geometry)
    if first.suffix == ".json":
        return _matching(first, geometry)
    if first.suffix == ".npy":
        return _lukv(first, geometry, ratio)
    raise ProfileError(
        f"{first}: not a file that is understood: a folder of DuoAttention's (full_attention_heads.tsv), Attention Matching's"
        " FILE.json, KVzip's FILE.pt, or LU-KV's FILE.npy"
    )


def _duo(folder: Path, geometry: Geometry) -> Imported:
    table, config = folder / "full_attention_heads.tsv", folder / "config.json"
    for path in (table, config):
        if not path.is_file():
            raise ProfileError(f"{folder}: a DuoAttention pattern needs {path.name}, which is not there")
    try:
        rows = [[float(cell) for cell in line.split("\t")] for line in table.read_text().splitlines() if line.strip()]
        words = json.loads(config.read_text())
        facts = {key: int(words[key]) for key in ("sink_size", "recent_size")}
    except (ValueError, KeyError, TypeError) as wrong:
        raise ProfileError(f"{folder}: not a DuoAttention pattern: {wrong}") from None
    # DuoAttention clips the gates as it reads them; a head without a gate has sinks and a recent window alone.
    gates = [[min(max(gate, 0.0), 1.0) if math.isfinite(gate) else gate for gate in row] for row in rows]
    return Imported("duo-attention", _of_layers(table, gates, geometry), 0.2, facts | {"trained_on": str(words.get("model_name", ""))})


def _matching(path: Path, geometry: Geometry) -> Imported:
    try:
        shares = json.loads(path.read_text())
    except ValueError as wrong:
        raise ProfileError(f"{path}: not JSON: {wrong}") from None
    if not isinstance(shares, dict) or not shares or not all(re.fullmatch(r"L\d+H\d+", key) for key in shares):
        found = next((key for key in shares if not re.fullmatch(r"L\d+H\d+", key)), "") if isinstance(shares, dict) else type(shares).__name__
        raise ProfileError(f"{path}: not head budgets of Attention Matching: its keys are L0H0, L0H1 …, and this has {found!r}")
    wanted = [[f"L{layer}H{head}" for head in range(geometry.kv_heads)] for layer in geometry.compressed]
    names = [name for row in wanted for name in row]
    missing, more = [name for name in names if name not in shares], sorted(set(shares) - set(names))
    if missing or more:
        what = f"lacks {missing[0]}" if missing else f"has {more[0]}"
        raise ProfileError(f"{path} {what}: the model has {_shape(geometry)}")
    try:
        rows = [[float(shares[name]) for name in row] for row in wanted]
    except (TypeError, ValueError) as wrong:
        raise ProfileError(f"{path}: a share is not a number: {wrong}") from None
    return Imported("attention-matching", rows, 0.0, {})


def _kvzip(paths: list[Path], geometry: Geometry) -> Imported:
    scores = []
    for path in paths:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as wrong:
            raise ProfileError(f"{path}: not a tensor of torch.save's: {' '.join(str(wrong).split())[:120]}") from None
        if not isinstance(found, torch.Tensor):
            raise ProfileError(f"{path}: not KVzip's head scores: a tensor was expected, and this is {type(found).__name__}")
        rows = found.squeeze()
        if geometry.kv_heads == 1 and rows.dim() == 1:
            rows = rows[:, None]
        if rows.dim() != 2:
            raise ProfileError(f"{path}: not KVzip's head scores: [layers, KV heads] was expected, and this is {list(found.shape)}")
        scores.append(_of_layers(path, rows.double().tolist(), geometry))
    return Imported("kvzip", torch.tensor(scores, dtype=torch.float64).amax(0).tolist(), 0.2, {"files": len(paths)})


def _lukv(path: Path, geometry: Geometry, ratio: float) -> Imported:
    """As kvpress's LUKVPress reads it: row r - 1 is of r % dropped."""
    try:
        table = numpy.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as wrong:
        raise ProfileError(f"{path}: not an array of numpy.save's: {' '.join(str(wrong).split())[:120]}") from None
    if table.ndim != 3 or table.shape[0] != 99:
        raise ProfileError(f"{path}: not LU-KV's table: [99, layers, KV heads] was expected, and this is {list(table.shape)}")
    dropped = round(100 * (1 - ratio))
    if not 1 <= dropped <= 99:
        raise ProfileError(f"{path}: --ratio {ratio:g}: its tables are of 0.01 to 0.99 kept")
    rows = _of_layers(path, table[dropped - 1].astype("float64").tolist(), geometry)
    if not all(0 <= value <= 1 for row in rows for value in row):
        raise ProfileError(f"{path}: a head drops a share outside 0 to 1")
    return Imported("lu-kv", [[1 - value for value in row] for row in rows], 0.0, {"ratio": ratio})


def _of_layers(path: Path, rows: list[list[float]], geometry: Geometry) -> list[list[float]]:
    """Those of the layers that a policy may cut: the table has them alone, or all layers."""
    if {len(row) for row in rows} != {geometry.kv_heads} or len(rows) not in (geometry.layers, len(geometry.compressed)):
        widths = sorted({len(row) for row in rows})
        raise ProfileError(f"{path} has {len(rows)} layers of {'/'.join(map(str, widths))} heads: the model has {_shape(geometry)}")
    return rows if len(rows) == len(geometry.compressed) else [rows[layer] for layer in geometry.compressed]


def _shape(geometry: Geometry) -> str:
    sliding = geometry.layers - len(geometry.compressed)
    return f"{geometry.layers} layers of {geometry.kv_heads} KV heads" + (f", {sliding} of them sliding" if sliding else "")


def make(sources: list[Path], described: dict, alpha: float, floor: float | None, ratio: float | None = None) -> profile_file.Profile:
    """Raises ProfileError."""
    found = read(sources, Geometry(**described["geometry"]), ratio)
    values = [value for row in found.weights for value in row]
    if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
        raise ProfileError(f"{sources[0]} has a weight that is negative or not finite, or no weight above 0")
    recipe = {"method": found.method, "source": " ".join(source.name for source in sources)} | found.facts
    return profile_file.Profile(described, recipe, "head", alpha, found.floor if floor is None else floor, found.weights)


def _within(most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: expected 0 to {most:g}")
        return value

    return number


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"{os.environ.get('DKV_COMMAND', 'python -m dkv profile')} import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("--model", required=True, help="the model that it was measured on: its folder, which is fingerprinted")
    parser.add_argument("--alpha", type=_within(8), default=1.0, help="budgets grow as weight^alpha (%(default)s)")
    parser.add_argument("--floor", type=_within(1), help="the least budget, as a share of the mean (Attention Matching and LU-KV 0, others 0.2)")
    parser.add_argument("--ratio", type=_within(1), help="LU-KV: the share of the cache that is kept, 0.25")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the profile")
    options = parser.parse_args(arguments)
    for source in options.sources:
        if not source.exists():
            parser.error(f"{source}: no such file or folder")
    model, _, name = models.load(options.model, torch.bfloat16)
    described = profile_file.describe_model(model, profile_file.sliding_windows(model.config.get_text_config()), name)
    made = make(options.sources, described, options.alpha, options.floor, options.ratio)
    made.save(options.output)
    profile_file.load(options.output)
    print(f"{options.output}: {made.recipe['method']}, {len(made.weights)} layers of {len(made.weights[0])} KV heads of {name}")
