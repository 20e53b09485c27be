"""The lines of `dkv sweep`, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError


@dataclass(frozen=True)
class Point:
    """One policy at one capacity over one prompt."""

    file: str
    task: str  # "" where none was named.
    model: str
    prompt_tokens: int
    policy: str
    params: tuple[tuple[str, str], ...]  # Sorted; without the capacity.
    capacity: int
    bytes_kept: int  # K and V.
    bytes_full: int
    damage: tuple[float, ...] | None  # Per layer: attention lost, heads weighted by the profile (docs/POLICIES.md).
    mass: tuple[float, ...] | None  # Per layer, 0 … 1: share of the window's attention on what is kept.
    error_l2: tuple[float, ...] | None  # Per layer, relative: of the attention's output.
    lengths: tuple[tuple[int, ...], ...]  # Rows per layer and KV head.
    asked: tuple[tuple[str, str], ...] = ()  # What the sweep was told: policy, size and what else was given.

    @property
    def prompt(self) -> str:
        return self.file

    @property
    def budgets(self) -> list[float]:
        """Rows per layer, the mean over its heads."""
        return [sum(heads) / len(heads) for heads in self.lengths]

    @property
    def mean_damage(self) -> float | None:
        return None if not self.damage else sum(self.damage) / len(self.damage)

    @property
    def mean_mass(self) -> float | None:
        return None if not self.mass else sum(self.mass) / len(self.mass)

    @property
    def mean_error(self) -> float | None:
        return None if not self.error_l2 else sum(self.error_l2) / len(self.error_l2)


@dataclass(frozen=True)
class Missing:
    """A point that cannot be had, and why."""

    file: str
    model: str
    policy: str
    capacity: int
    why: str


def read(paths: list[Path]) -> tuple[list[Point], list[Missing]]:
    """All points, a later one of the same file, policy, parameters and capacity in place of an earlier one.

    Points are in the order of their files' names, those of a file as they came: shards make the page that one run makes.
    A last line that was cut off (the sweep is still running, or was stopped) is passed over.

    Raises UserError naming file and line; OSError.
    """
    points: dict[tuple, Point] = {}
    missing: dict[tuple, Missing] = {}
    for path in paths:
        text = path.read_bytes()
        lines = text.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                made = _parse(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as wrong:
                if number == len(lines) and isinstance(wrong, json.JSONDecodeError):
                    continue
                words = f"there is no {wrong}" if isinstance(wrong, KeyError) else str(wrong)
                raise UserError(f"{path}:{number}: no line of a sweep: {words}") from None
            if made is None:
                continue
            key = (made.file, made.model, made.policy, getattr(made, "params", ()), made.capacity)
            (points if isinstance(made, Point) else missing)[key] = made
    if not points:
        reason = f"; {next(iter(missing.values())).why}" if missing else ""
        raise UserError(f"{', '.join(map(str, paths))}: there is no point of a sweep{reason}")
    return sorted(points.values(), key=_file), sorted(missing.values(), key=_file)


def _file(made: Point | Missing) -> str:
    return made.file


def _parse(line: dict) -> Point | Missing | None:
    if not isinstance(line, dict):
        raise ValueError("it is no object")
    if "sweep" in line:
        return None
    if line.get("error"):
        return Missing(line["file"], line.get("model", ""), line["policy"], int(line.get("capacity") or 0), line["error"])
    params = line.get("params") or {}
    lengths = tuple(tuple(int(rows) for rows in heads) for heads in line["lengths"])
    if not lengths or not all(lengths):
        raise ValueError("lengths are empty")
    point = Point(
        file=line["file"],
        task=line.get("task") or "",
        model=line.get("model", ""),
        prompt_tokens=int(line["prompt_tokens"]),
        policy=line["policy"],
        params=tuple(sorted((key, _plain(value)) for key, value in params.items() if key != "capacity")),
        asked=tuple((key, _plain(value)) for key, value in (line.get("asked") or {}).items()),
        capacity=int(line["capacity"]),
        bytes_kept=int(line["bytes_kept"]),
        bytes_full=int(line["bytes_full"]),
        damage=_per_layer(line, "damage", len(lengths)),
        mass=_per_layer(line, "mass_kept", len(lengths)),
        error_l2=_per_layer(line, "error_l2", len(lengths)),
        lengths=lengths,
    )
    if point.bytes_full <= 0 or point.capacity <= 0:
        raise ValueError(f"bytes_full is {point.bytes_full} and the capacity {point.capacity}")
    return point


def _per_layer(line: dict, key: str, layers: int) -> tuple[float, ...] | None:
    values = line.get(key)
    if not values or any(value is None for value in values):
        return None
    if len(values) != layers:
        raise ValueError(f"{key} has {len(values)} entries for {layers} layers")
    return tuple(float(value) for value in values)


def _plain(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
