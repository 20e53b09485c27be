"""The profile file: how much each layer or KV head of one model matters. Small, versioned, checked on load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import dkv
from dkv.errors import UserError

from . import surrogate_file

FORMAT, VERSION = "dkv-profile", 1
_SAMPLE = 512  # Values per sampled tensor.
_IGNORED = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "use_cache", "_attn_implementation"}


class ProfileError(UserError):
    """The file is not a profile, or not one for this model."""


@dataclass(frozen=True)
class Geometry:
    """What a profile must fit to the number."""

    layers: int
    compressed: list[int]  # Model indices of the layers the weights are for.
    q_heads: int
    kv_heads: int
    head_dim: int


@dataclass
class Profile:
    """`weights` [compressed layers][Hkv], or [compressed layers][1] with granularity "layer"."""

    model: dict  # name, geometry, config and weights: hashes
    recipe: dict
    granularity: str
    alpha: float
    floor: float
    weights: list[list[float]]
    figures: dict = field(default_factory=dict)  # Per task: damage, prompts; and the mean error curves.
    kernel: int = 7  # Of the scores' pooling, where the policy's options name none.
    surrogate: dict | None = None  # surrogate_file.py: predicts replay scores from K and V.

    @property
    def geometry(self) -> Geometry:
        return Geometry(**self.model["geometry"])

    def tensor(self) -> torch.Tensor:
        return torch.tensor(self.weights, dtype=torch.float64)

    def predictor(self) -> surrogate_file.Surrogate | None:
        """The surrogate's weights. Raises SurrogateError for a section that is malformed."""
        made = self.geometry
        if self.surrogate is None:
            return None
        return surrogate_file.read(self.surrogate, len(made.compressed), made.kv_heads, made.head_dim)

    def surrogate_wish(self) -> dkv.Surrogate | None:
        """As a session takes it."""
        made = self.predictor()
        return None if made is None else made.as_wish(self.geometry.kv_heads, self.geometry.head_dim)

    def save(self, path: Path) -> None:
        """Written beside and renamed: a reader never sees half a file."""
        scratch = path.with_name(path.name + ".part")
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if self.surrogate is None:
            del data["surrogate"]
        lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in data.items()]
        scratch.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.replace(scratch, path)


def load(path: Path, geometry: Geometry | None = None) -> Profile:
    """The profile at `path`; refused when it is malformed or made for another geometry than `geometry`."""
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ProfileError(f"{path} is not JSON") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ProfileError(f"{path} is not a {FORMAT} file")
    version = data.pop("version", None)
    if version != VERSION:
        raise ProfileError(f"{path} has version {version}; this build reads version {VERSION}")
    try:
        profile = Profile(**data)
        made_for = profile.geometry
        shape = [len(row) for row in profile.weights]
        values = [float(value) for row in profile.weights for value in row]
    except (TypeError, KeyError, ValueError) as error:
        raise ProfileError(f"{path} is malformed: {error}") from None
    width = {"head": made_for.kv_heads, "layer": 1}.get(profile.granularity)
    if width is None:
        raise ProfileError(f"{path} has granularity {profile.granularity}, not layer or head")
    if shape != [width] * len(made_for.compressed):
        raise ProfileError(f"{path} has weights of another shape than its geometry says")
    if not isinstance(profile.kernel, int) or profile.kernel < 1 or profile.kernel % 2 == 0:
        raise ProfileError(f"{path} has kernel {profile.kernel}: it must be odd")
    if not all(0 <= value < float("inf") for value in values) or sum(values) == 0:
        raise ProfileError(f"{path} has a weight that is negative or not finite, or no weight above 0")
    try:
        profile.predictor()
    except surrogate_file.SurrogateError as wrong:
        raise ProfileError(f"{path}: {wrong}") from None
    if geometry is not None and made_for != geometry:
        raise ProfileError(
            f"{path} is for {_words(made_for)}, not for {_words(geometry)}: calibrate this model"
        )
    return profile


def sliding_windows(config) -> list[int | None]:
    """Per layer the sliding window, or None for full attention. Raises ProfileError for a layer of another type."""
    kinds = getattr(config, "layer_types", None)
    sliding = getattr(config, "sliding_window", None)
    if kinds is None:
        return [sliding] * config.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ProfileError(f"layers of type {', '.join(sorted(unknown))} cannot be probed")
    return [sliding if kind == "sliding_attention" else None for kind in kinds]


def describe_model(model, slidings: list[int | None], name: str) -> dict:
    """Name, geometry, and hashes of the config and of a sample of the weights."""
    return describe(model.config.get_text_config(), model.named_parameters(), slidings, name)


def describe(config, parameters: Iterable[tuple[str, torch.Tensor]], slidings: list[int | None], name: str) -> dict:
    """The same of a text config and of parameters by name, of which only those of is_sampled() are needed."""
    heads = config.num_attention_heads
    geometry = Geometry(
        config.num_hidden_layers,
        [index for index, sliding in enumerate(slidings) if sliding is None],
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    kept = {key: value for key, value in config.to_dict().items() if key not in _IGNORED}
    return {
        "name": name,
        "geometry": asdict(geometry),
        "config": hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "weights": _weight_hash(parameters),
    }


def is_sampled(parameter: str) -> bool:
    """Whether the fingerprint of the weights is of this parameter. qkv_proj.weight is one, too."""
    return parameter.endswith(("k_proj.weight", "v_proj.weight"))


def _weight_hash(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The same in every dtype the file may be loaded in: rounded to bfloat16 first."""
    digest = hashlib.sha256()
    for _, parameter in sorted((each for each in parameters if is_sampled(each[0])), key=lambda each: each[0]):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLE)
        digest.update(flat[::step][:_SAMPLE].to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _words(geometry: Geometry) -> str:
    return (
        f"{len(geometry.compressed)} of {geometry.layers} layers with {geometry.q_heads}/{geometry.kv_heads} heads"
        f" of {geometry.head_dim}"
    )
