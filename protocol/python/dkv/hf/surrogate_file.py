"""The section "surrogate" of a profile file: weights that predict replay scores from K and V alone.

    version     1
    target      "kvzip" or "kvzip+": what the weights were fitted to first
    rope        frequencies [r], and whether adjacent dims turn together: how keys are un-rotated
    features    2 · Hkv · D + 2 · Hkv + 1: un-rotated K of each KV head, V of each, ln‖k‖, ln‖v‖, 1
    weights     per compressed layer little-endian bf16 [Hkv][features] as hexadecimal text
    r2          per compressed layer and KV head: of that fit, on other texts
    recipe      how it was made; "lessons": how the weights were trained after the fit, and,
                where contexts were held out, KL before and after
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

import dkv

from .files import rope_of

VERSION = 1
TARGETS = ("kvzip", "kvzip+")
_CHANGING = ("dynamic", "longrope")  # Their frequencies depend on the text's length.


class SurrogateError(ValueError):
    """The section is malformed, or the model cannot have one; the message says why, without the file's name."""


@dataclass(frozen=True)
class Rope:
    """Dims (i, i + r) of a key, or (2i, 2i + 1) where interleaved, were turned by position · frequencies[i]."""

    frequencies: tuple[float, ...] = ()
    interleaved: bool = False


@dataclass
class Surrogate:
    target: str
    rope: Rope
    weights: list[torch.Tensor]  # Per compressed layer [Hkv, features], f32 with values of bf16.
    r2: list[list[float]]
    recipe: dict = field(default_factory=dict)

    def as_json(self) -> dict:
        return {
            "version": VERSION,
            "target": self.target,
            "rope": {"frequencies": list(self.rope.frequencies), "interleaved": self.rope.interleaved},
            "features": self.weights[0].shape[1],
            "weights": [_bytes(layer).hex() for layer in self.weights],
            "r2": self.r2,
            "recipe": self.recipe,
        }

    def as_wish(self, kv_heads: int, head_dim: int) -> dkv.Surrogate:
        """As a session takes it."""
        weights = b"".join(map(_bytes, self.weights))
        return dkv.Surrogate(kv_heads, head_dim, weights, self.rope.frequencies, self.rope.interleaved)


def feature_count(kv_heads: int, head_dim: int) -> int:
    return 2 * kv_heads * head_dim + 2 * kv_heads + 1


def rounded(weights: torch.Tensor) -> torch.Tensor:
    """As a file holds them."""
    return weights.to(torch.bfloat16).float()


def read(section: object, layers: int, kv_heads: int, head_dim: int) -> Surrogate:
    """From JSON, for a model of this geometry. Raises SurrogateError."""
    if not isinstance(section, dict):
        raise SurrogateError(f"surrogate is a {type(section).__name__}, not an object")
    if section.get("version") != VERSION:
        raise SurrogateError(f"surrogate has version {section.get('version')}; this build reads version {VERSION}")
    if section.get("target") not in TARGETS:
        raise SurrogateError(f"surrogate has target {section.get('target')}, not {' or '.join(TARGETS)}")
    rope = _rope(section.get("rope"), head_dim)
    wanted = feature_count(kv_heads, head_dim)
    if section.get("features") != wanted:
        raise SurrogateError(f"surrogate has features {section.get('features')}, not {wanted}: {kv_heads} KV heads of {head_dim}")
    texts, r2 = section.get("weights"), section.get("r2")
    if not isinstance(texts, list) or len(texts) != layers:
        raise SurrogateError(f"surrogate has weights of {_length(texts)} layers, not {layers}")
    if not isinstance(r2, list) or [_length(row) for row in r2] != [kv_heads] * layers:
        raise SurrogateError(f"surrogate has r2 of another shape than {layers} layers of {kv_heads} KV heads")
    weights = [_tensor(text, index, kv_heads, wanted) for index, text in enumerate(texts)]
    return Surrogate(section["target"], rope, weights, r2, dict(section.get("recipe") or {}))


def rope_of_model(model: torch.nn.Module) -> Rope:
    """From the model's own rotary module, for its layers with full attention. Raises SurrogateError, naming the rope."""
    config = model.config.get_text_config(decoder=True)
    skipped = getattr(config, "no_rope_layers", None)
    if skipped and not all(skipped):
        raise SurrogateError("some of the model's layers do not rotate their keys, and a surrogate has one rope for all")
    module = next((module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "rotary_emb"), None)
    if module is None:
        said = rope_of(model.config)
        if said.theta:
            raise SurrogateError(f"{type(model).__name__} rotates its keys, and has no module rotary_emb that says how")
        return Rope()
    kind = getattr(module, "rope_type", "default")
    if isinstance(kind, dict):  # A hybrid of transformers 5 has one per type of layer.
        kind = kind.get("full_attention", "default")
    if kind in _CHANGING:
        raise SurrogateError(f"rope {kind} changes its frequencies with the length of the text: keys cannot be un-rotated")
    frequencies = getattr(module, "full_attention_inv_freq", None)
    if frequencies is None:
        frequencies = getattr(module, "inv_freq", None)
    if frequencies is None:
        raise SurrogateError(f"{type(module).__name__} has no inv_freq that says how keys are rotated")
    return Rope(tuple(frequencies.double().tolist()), rope_of(model.config).interleaved)


def _rope(found: object, head_dim: int) -> Rope:
    frequencies = found.get("frequencies") if isinstance(found, dict) else None
    if not isinstance(frequencies, list) or not isinstance(found.get("interleaved"), bool):
        raise SurrogateError("surrogate has no rope with frequencies and interleaved")
    if 2 * len(frequencies) > head_dim:
        raise SurrogateError(f"surrogate has {len(frequencies)} frequencies, more than half of head_dim {head_dim}")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in frequencies):
        raise SurrogateError("surrogate has a frequency that is not a finite number of at least 0")
    return Rope(tuple(map(float, frequencies)), found["interleaved"])


def _tensor(text: object, layer: int, heads: int, features: int) -> torch.Tensor:
    wanted = 4 * heads * features
    if not isinstance(text, str) or len(text) != wanted:
        raise SurrogateError(f"surrogate has {_length(text)} characters of weights in layer {layer}, not {wanted}")
    try:
        data = bytearray.fromhex(text)
    except ValueError:
        raise SurrogateError(f"surrogate has weights in layer {layer} that are not hexadecimal") from None
    weights = torch.frombuffer(data, dtype=torch.bfloat16).float().view(heads, features)
    if not bool(torch.isfinite(weights).all()):
        raise SurrogateError(f"surrogate has a weight in layer {layer} that is not finite")
    return weights


def _bytes(weights: torch.Tensor) -> bytes:
    return weights.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()


def _length(found: object) -> int:
    return len(found) if isinstance(found, (list, str)) else 0
