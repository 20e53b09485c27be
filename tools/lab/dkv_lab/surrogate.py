"""Replay scores without a replay: a linear map from what is in the cache already, fitted once per model.

For every token of a layer the features are its un-rotated keys and its values, of all KV heads, the logarithms of
their norms, and 1; the target is the logarithm of KVzip's score (dkv.hf.replay) in each KV head. Ridge regression;
only sums over tokens are kept, so memory does not grow with the texts. distil.py trains the weights further.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import torch

from dkv.errors import UserError
from dkv.hf import surrogate_file
from dkv.hf.replay import Instruction

from . import needles, progress
from .probe import Layer, Probe
from .sources import Reader

_LEAST = 2.0**-20  # Scores below count as this: 0 has no logarithm.
_LEAST_SQUARE = 2.0**-40  # Of a norm, in its logarithm.
TARGET, RIDGE, TEXTS = "kvzip", 3e-3, 24
FACTS = 12  # Statements hidden in every second text: numbers and names are rare in what this machine has to read.


def features(layer: Layer, rope: surrogate_file.Rope) -> torch.Tensor:
    """[n, F] f32, in the order that a profile's weights have."""
    keys, values = unrotated(layer.keys.float(), rope), layer.values.float()
    columns = [*keys, *values]
    norms = [0.5 * rows.square().sum(-1, keepdim=True).clamp_min(_LEAST_SQUARE).log() for rows in columns]
    return torch.cat([*columns, *norms, keys.new_ones(keys.shape[1], 1)], dim=1)


def unrotated(keys: torch.Tensor, rope: surrogate_file.Rope) -> torch.Tensor:
    """keys [Hkv, n, D] as they were before RoPE; position j is row j."""
    half = len(rope.frequencies)
    if half == 0:
        return keys
    angles = torch.arange(keys.shape[1], device=keys.device)[:, None] * torch.tensor(rope.frequencies, device=keys.device)
    cos, sin = angles.cos(), angles.sin()
    out = keys.clone()
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if rope.interleaved else (slice(0, half), slice(half, 2 * half))
    a, b = keys[..., first], keys[..., second]
    out[..., first], out[..., second] = a * cos + b * sin, b * cos - a * sin
    return out


def predicted(layer: Layer, weights: torch.Tensor, rope: surrogate_file.Rope) -> torch.Tensor:
    """[Hkv, n] f32: the logarithm of the replay score. weights [Hkv, F]"""
    return weights @ features(layer, rope).T


@dataclass
class Sums:
    """Of one layer over all tokens, f64: enough to fit and to judge a fit."""

    xx: torch.Tensor  # [F, F]
    xy: torch.Tensor  # [F, Hkv]
    yy: torch.Tensor  # [Hkv]
    y: torch.Tensor  # [Hkv]

    @classmethod
    def empty(cls, count: int, heads: int) -> "Sums":
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
        return cls(zeros(count, count), zeros(count, heads), zeros(heads), zeros(heads))

    def add(self, rows: torch.Tensor, targets: torch.Tensor) -> None:
        """rows [n, F]; targets [Hkv, n]"""
        rows, targets = rows.double().cpu(), targets.double().cpu().T
        self.xx += rows.T @ rows
        self.xy += rows.T @ targets
        self.yy += targets.square().sum(0)
        self.y += targets.sum(0)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.y + other.y)

    @property
    def count(self) -> float:
        return float(self.xx[-1, -1])  # The last feature is 1.

    def fit(self, ridge: float) -> torch.Tensor:
        """[Hkv, F] f64. Features are brought to mean 0 and variance 1 for the penalty; the constant has none."""
        mean, n = self.xx[-1, :-1] / self.count, self.count
        covariance = self.xx[:-1, :-1] / n - mean[:, None] * mean
        spread = covariance.diagonal().clamp_min(1e-12).sqrt()
        scaled = covariance / spread[:, None] / spread + ridge * torch.eye(len(mean), dtype=torch.float64)
        target = (self.xy[:-1] / n - mean[:, None] * (self.y / n)) / spread[:, None]
        slopes = torch.linalg.solve(scaled, target) / spread[:, None]
        return torch.cat([slopes, (self.y / n - mean @ slopes)[None]]).T

    def explained(self, weights: torch.Tensor) -> torch.Tensor:
        """R² of each head, [Hkv]."""
        weights = weights.double()
        error = self.yy - 2 * (weights * self.xy.T).sum(1) + ((weights @ self.xx) * weights).sum(1)
        return 1 - error / (self.yy - self.y.square() / self.count).clamp_min(1e-12)


def measure(probe: Probe, tokens: list[int], instruction: Instruction, rope, sums: dict[str, list[Sums]]) -> None:
    """Adds one text's tokens to the sums of each kind of target."""
    prompt = probe.prefill(torch.tensor(tokens, device=probe.model.device))
    found = probe.replay(prompt, tokens, instruction, tuple(sums))
    for ordinal, index in enumerate(prompt.compressed):
        rows = features(prompt.layers[index], rope)
        for kind, layers in sums.items():
            if len(layers) == ordinal:
                layers.append(Sums.empty(rows.shape[1], prompt.kv_heads))
            layers[ordinal].add(rows, found[kind][ordinal].clamp_min(_LEAST).log())


def texts(tokenizer, part: str, count: int, tokens: int, seed: int) -> list[needles.Row]:
    """Running text of every kind there is; in every second one FACTS short statements are hidden."""
    reader, rows = Reader(part, seed), []
    for index in range(count):
        document, text = reader.excerpt(8 * tokens)
        key = f"surrogate-{part}-{tokens}-{seed}-{index}"
        if index % 2:
            text = _with_facts(text, random.Random(key))
        ids = needles.start(tokenizer) + needles.encode(tokenizer, text)
        rows.append(needles.Row(key, "surrogate", document.kind, ids[:tokens], []))
    return rows


def _with_facts(text: str, rng: random.Random) -> str:
    """Statements of the calibration family, one after every few lines."""
    makers = list(needles.FAMILIES["calibration"].values())
    lines = text.splitlines(keepends=True)
    mean, out, room = max(1, len(text) // (2 * FACTS)), [], 0
    for line in lines:
        out.append(line)
        room -= len(line)
        if room <= 0:
            out += [f" {statement}\n" for statement in rng.choice(makers)(rng).statements]
            room = rng.randint(mean // 2, 3 * mean // 2)
    return "".join(out)


def fit_model(probe: Probe, tokenizer, count: int, tokens: int, seed: int) -> dict:
    """The profile's "surrogate", fitted on `count` texts of the calibration part and judged on others.

    Raises UserError for a model whose keys cannot be un-rotated or whose attention cannot be replayed.
    """
    try:
        rope = surrogate_file.rope_of_model(probe.model)
    except surrogate_file.SurrogateError as wrong:
        raise UserError(f"no surrogate for this model: {wrong}") from None
    instruction, begun = Instruction.of(tokenizer), time.monotonic()
    held = max(2, count // 4)
    parts = {"calibration": count, "tuning": held}
    rows = [row for part, wanted in parts.items() for row in texts(tokenizer, part, wanted, tokens, seed)]
    sums = {part: {TARGET: []} for part in parts}
    with progress.of("fitting the surrogate", rows) as done:
        for number, row in enumerate(rows):
            measure(probe, row.tokens, instruction, rope, sums["calibration" if number < count else "tuning"])
            done(row)
    recipe = {"texts": count, "tokens": tokens, "seed": seed, "held": held, "seconds": round(time.monotonic() - begun)}
    return section(sums["calibration"][TARGET], sums["tuning"][TARGET], TARGET, RIDGE, rope, recipe)


def words(made: surrogate_file.Surrogate) -> str:
    """One line about a surrogate."""
    values = sorted(value for row in made.r2 for value in row)
    size = sum(layer.numel() for layer in made.weights)
    spread = f"{sum(values) / len(values):.2f} ({values[0]:.2f} … {values[-1]:.2f} by KV head)"
    texts_ = f"{made.recipe.get('texts')} texts of {made.recipe.get('tokens')} tokens"
    taught = made.recipe.get("lessons")
    kls = f", KL of others {taught['before']} → {taught['after']}" if taught and taught.get("after") is not None else ""
    trained = f"; trained on answers over {taught['contexts']} contexts{kls}" if taught else ""
    return f"surrogate of {made.target}, {size:,} weights in bf16 from {texts_}; the fit's R² on others {spread}{trained}"


def section(layers: list[Sums], held: list[Sums], target: str, ridge: float, rope, recipe: dict) -> dict:
    """The profile's "surrogate": weights as they are stored, judged as they are stored."""
    fitted = [surrogate_file.rounded(layer.fit(ridge)) for layer in layers]
    r2 = [[round(value, 4) for value in sums.explained(weights).tolist()] for sums, weights in zip(held, fitted)]
    mean = sum(map(math.fsum, r2)) / sum(map(len, r2))
    return surrogate_file.Surrogate(target, rope, fitted, r2, recipe | {"ridge": ridge, "r2": round(mean, 4)}).as_json()
