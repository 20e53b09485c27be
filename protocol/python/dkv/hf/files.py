"""dkv's own file of a saved cache, read with the safetensors library.

    layers.{l}.keys, .values   [Hkv, n, D]; heads of unequal length: [rows, D], head after head; of version 2 ggml's
                               blocks, U8, with a row's bytes for D
    layers.{l}.positions       [Hkv, n] i32, of a compacted cache; heads of unequal length: [rows]
    layers.{l}.head_offsets    [Hkv + 1] i32, heads of unequal length: where each begins in the rows
    layers.{l}.refined         [m] i32, of version 2 with q4_0+q4_0: which of the layer's rows, head after head, are
                               refined, ascending; .keys_rest and .values_rest have m rows more
    layers.{l}.q_window        [Hq, rows, D], the last rows' queries; or in no layer
    layers.{l}.sink_logits     [Hq] f32, learned attention sinks; in the layers that have them
    layers.{l}.scores          [Hkv, n_prompt] f32, what the policy scores ranks by; in every layer or in none
    tokens                     [n_prompt] i32; or not there

and the metadata format, version, model, n_prompt; scale and softcap where the logits have their own; rope.*;
provenance.*, what the file went through; crc32.NAME of each tensor, and crc32 of the header itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dkv.words import DkvError, Status

from .quantised import QuantisedRows

NEXT_TOKEN = "next_token"  # In the provenance, so that every program carries it along.
FINGERPRINT = "model_weights"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DTYPE_WORDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SEAL, _CRC = "crc32", "crc32."
_PROVENANCE = "provenance."


@dataclass(frozen=True)
class Rope:
    """What rotates the keys."""

    theta: float = 0.0  # 0: not known.
    interleaved: bool = False  # Adjacent pairs of dims turn together (llama.cpp), not the two halves (Hugging Face).
    order_known: bool = True  # Whether `interleaved` is: llama.cpp's files do not say.
    model_interleaved: bool = False  # The model's own code turns adjacent pairs (Cohere, GLM, GPT-J).
    dims: int = 0  # 0: all of them.
    scaling: str = ""  # JSON of a scaling that is not plain, as the model's config has it.


@dataclass
class SavedLayer:
    """Rows of one layer, copies of the file's.

    Heads alike: keys and values are [Hkv, rows, D]; else a list of [rows_h, D], and `positions` tell.
    """

    keys: torch.Tensor | list[torch.Tensor]
    values: torch.Tensor | list[torch.Tensor]
    positions: list[list[int]] | None  # Per KV head, ascending; None: 0 … n_prompt-1 in every head.
    sink_logits: torch.Tensor | None = None  # [Hq] f32; None: the layer has none.

    @property
    def lengths(self) -> list[int]:
        """Rows, per KV head."""
        return [rows.shape[0] for rows in self.keys]


@dataclass
class SavedFile:
    """What a file says of itself; rows are read by layer()."""

    path: Path
    model: str
    n_prompt: int  # Tokens of the prompt, kept or not: the next token's position.
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    scale: float | None = None  # Of the logits; None: 1/sqrt(head_dim).
    softcap: float | None = None
    rope: Rope = Rope()
    query_rows: int = 0
    tokens: torch.Tensor | None = None  # [n_prompt] int64
    provenance: dict[str, str] = field(default_factory=dict)
    has_checksums: bool = False
    quantised: QuantisedRows | None = None  # How K and V lie in the file; layer() gives them as `dtype`.
    _file: object = None
    _crcs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike) -> "SavedFile":
        """Raises DkvError, one line beginning with the path: IO, CORRUPT_DATA, UNSUPPORTED."""
        path = Path(path)
        file = _open(path)
        try:
            return cls._read(path, file)
        except _Wrong as wrong:
            raise DkvError(wrong.status, f"{path}: {wrong}") from None

    @property
    def next_token(self) -> int | None:
        """What greedy decoding puts behind the prompt, where the program that saved it knew."""
        found = self.provenance.get(NEXT_TOKEN, "")
        return int(found) if found.isdigit() else None

    @classmethod
    def _read(cls, path: Path, file) -> "SavedFile":
        words, names = file.metadata() or {}, set(file.keys())
        if words.get("format") != "dkv":
            raise _Wrong("its metadata has no format \"dkv\"; other formats go through dkv convert first")
        version = words.get("version")
        if version not in ("1", "2"):
            raise _Wrong(f"its version is {version}, and only 1 and 2 are known here", Status.UNSUPPORTED)
        layers = 0
        while f"layers.{layers}.keys" in names:
            layers += 1
        if layers == 0:
            raise _Wrong("there is no layers.0.keys")
        shape = file.get_slice("layers.0.keys").get_shape()
        ragged = len(shape) == 2
        if len(shape) not in (2, 3) or 0 in shape[1:]:
            raise _Wrong(f"layers.0.keys is {shape}, not [heads, rows, head_dim]")
        if ragged and "layers.0.head_offsets" not in names:
            raise _Wrong("layers.0.keys has two dimensions, and there is no layers.0.head_offsets")
        heads = file.get_slice("layers.0.head_offsets").get_shape()[0] - 1 if ragged else shape[0]
        quantised = _quantised(words, shape[-1]) if version == "2" else None
        dtype = _DTYPE_WORDS.get(words.get("rows.dtype")) if quantised else file.get_tensor("layers.0.keys").dtype
        if dtype not in _DTYPES:
            what = "the metadata's rows.dtype" if quantised else "layers.0.keys"
            raise _Wrong(f"{what} is {dtype}, not float32, float16 or bfloat16")
        made = cls(
            path=path,
            model=words.get("model", ""),
            n_prompt=_count(words, "n_prompt"),
            layers=layers,
            kv_heads=heads,
            head_dim=quantised.head_dim if quantised else shape[-1],
            dtype=dtype,
            scale=_number(words, "scale"),
            softcap=_number(words, "softcap"),
            rope=_rope(words),
            provenance=_under(_PROVENANCE, words),
            quantised=quantised,
            _file=file,
            _crcs=_under(_CRC, words),
        )
        made.has_checksums = bool(made._crcs) or _SEAL in words
        if made.has_checksums:
            _check_seal(path, words)
            if unsummed := sorted(names - made._crcs.keys()):
                raise _Wrong(f"the metadata has checksums, but none of {unsummed[0]}")
        if "layers.0.q_window" in names:
            made.query_rows = file.get_slice("layers.0.q_window").get_shape()[1]
        if "tokens" in names:
            made.tokens = made._tensor("tokens", (made.n_prompt,), (torch.int32,)).long()
        return made

    def layer(self, index: int) -> SavedLayer:
        """Rows of layer `index` < layers, their checksums verified where there are any.

        Raises DkvError (CORRUPT_DATA), beginning with the path and naming the tensor.
        """
        try:
            made = self._layer(index)
            made.sink_logits = self._sinks(f"layers.{index}.sink_logits")
            return made
        except _Wrong as wrong:
            raise DkvError(wrong.status, f"{self.path}: {wrong}") from None

    def queries(self, index: int) -> torch.Tensor | None:
        """[Hq, query_rows, D] after RoPE, or None. Raises as layer() does."""
        try:
            return self._tensor(f"layers.{index}.q_window", None, _DTYPES) if self.query_rows else None
        except _Wrong as wrong:
            raise DkvError(wrong.status, f"{self.path}: {wrong}") from None

    def _layer(self, index: int) -> SavedLayer:
        name = f"layers.{index}."
        names = set(self._file.keys())
        keys = self._rows(name + "keys", None)
        values = self._rows(name + "values", tuple(keys.shape))
        if name + "head_offsets" in names:
            return self._ragged(name, keys, values)
        if keys.dim() != 3 or keys.shape[0] != self.kv_heads or keys.shape[2] != self.head_dim:
            raise _Wrong(f"{name}keys is {list(keys.shape)}, not [{self.kv_heads}, rows, {self.head_dim}]")
        if name + "positions" not in names:
            if keys.shape[1] != self.n_prompt:
                raise _Wrong(f"{name}keys has {keys.shape[1]} rows of {self.n_prompt} tokens, and there are no positions")
            return SavedLayer(keys, values, None)
        positions = self._tensor(name + "positions", tuple(keys.shape[:2]), (torch.int32,))
        return SavedLayer(keys, values, [self._ascending(name, row) for row in positions])

    def _rows(self, name: str, shape: tuple | None) -> torch.Tensor:
        """[…, D] of `dtype`."""
        if self.quantised is None:
            return self._tensor(name, shape, (self.dtype,))
        packed = self._tensor(name, None, (torch.uint8,))
        if packed.dim() < 2 or packed.shape[-1] != self.quantised.row_bytes:
            raise _Wrong(f"{name} is {list(packed.shape)}, not rows of {self.quantised.row_bytes} bytes")
        rows = self.quantised.unpacked(packed)
        if self.quantised.refined:
            at = self._refined(name.rpartition(".")[0], packed[..., 0].numel())
            rest = self._tensor(name + "_rest", (len(at), self.quantised.row_bytes), (torch.uint8,))
            rows.view(-1, self.head_dim).index_add_(0, at, self.quantised.unpacked(rest))
        if shape is not None and tuple(rows.shape) != shape:
            raise _Wrong(f"{name} is rows {list(rows.shape)}, not {list(shape)}")
        rows = rows.to(self.dtype)
        if not bool(torch.isfinite(rows).all()):
            raise _Wrong(f"{name}: an element is a NaN, or beyond {self.dtype}")
        return rows

    def _refined(self, layer: str, rows: int) -> torch.Tensor:
        """[m] int64: of the layer's rows, head after head."""
        at = self._tensor(layer + ".refined", None, (torch.int32,)).long()
        if at.dim() != 1 or bool((at.diff() <= 0).any()) or (len(at) and not 0 <= int(at[0]) <= int(at[-1]) < rows):
            raise _Wrong(f"{layer}.refined are not ascending within 0 … {rows - 1}")
        return at

    def _sinks(self, name: str) -> torch.Tensor | None:
        if name not in self._file.keys():
            return None
        sinks = self._tensor(name, None, (torch.float32,))
        if sinks.dim() != 1 or sinks.shape[0] % self.kv_heads or not bool(torch.isfinite(sinks).all()):
            raise _Wrong(f"{name} is not one finite number per query head of {self.kv_heads} KV heads")
        return sinks

    def _ragged(self, name: str, keys: torch.Tensor, values: torch.Tensor) -> SavedLayer:
        offsets = self._tensor(name + "head_offsets", (self.kv_heads + 1,), (torch.int32,)).tolist()
        good = offsets[0] == 0 and all(begin <= end for begin, end in zip(offsets, offsets[1:]))
        if keys.dim() != 2 or keys.shape[1] != self.head_dim or not good or offsets[-1] != keys.shape[0]:
            raise _Wrong(f"{name}head_offsets {offsets} do not cut {list(keys.shape)} rows into heads")
        positions = self._tensor(name + "positions", (keys.shape[0],), (torch.int32,))
        cuts = list(zip(offsets, offsets[1:]))
        return SavedLayer(
            [keys[begin:end] for begin, end in cuts],
            [values[begin:end] for begin, end in cuts],
            [self._ascending(name, positions[begin:end]) for begin, end in cuts],
        )

    def _ascending(self, name: str, positions: torch.Tensor) -> list[int]:
        steps = positions[1:] - positions[:-1]
        inside = len(positions) == 0 or (positions[0] >= 0 and positions[-1] < self.n_prompt)
        if not inside or bool((steps <= 0).any()):
            raise _Wrong(f"{name}positions are not ascending within 0 … {self.n_prompt - 1}")
        return positions.tolist()

    def _tensor(self, name: str, shape: tuple | None, dtypes: tuple) -> torch.Tensor:
        if name not in self._file.keys():
            raise _Wrong(f"there is no {name}")
        # Its own memory: a file that is cut short later does not end this process.
        tensor = self._file.get_tensor(name).clone()
        if tensor.dtype not in dtypes:
            raise _Wrong(f"{name} is {tensor.dtype}, not {' or '.join(map(str, dtypes))}")
        if shape is not None and tuple(tensor.shape) != shape:
            raise _Wrong(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        if self._crcs:
            found = f"{crc32_of(tensor):08x}"
            if self._crcs[name].lower() != found:
                raise _Wrong(f"the checksum of {name} is {found}, not {self._crcs[name]}: the file is damaged")
        return tensor


def crc32_of(tensor: torch.Tensor) -> int:
    """Of the tensor's bytes, as the files have it."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy())


class _Wrong(Exception):
    """Without the path."""

    def __init__(self, message: str, status: Status = Status.CORRUPT_DATA):
        super().__init__(message)
        self.status = status


def _open(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise DkvError(Status.IO, f"{path}: it is {kind}")
        return safe_open(path, framework="pt")
    except OSError as error:
        raise DkvError(Status.IO, f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DkvError(Status.CORRUPT_DATA, f"{path}: it is no safetensors file: {error}") from None


def _check_seal(path: Path, words: dict[str, str]) -> None:
    """The header's own checksum: of its bytes, with zeros where that checksum stands."""
    if _SEAL not in words:
        raise _Wrong("the metadata has checksums, but none of the header")
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    before, begin, after = header.partition(f'"{_SEAL}":"'.encode())
    found = f"{zlib.crc32(before + begin + b'0' * 8 + after[8:]):08x}"
    if words[_SEAL] != found:
        raise _Wrong(f"the checksum of the header is {found}, not {words[_SEAL]}: the file is damaged")


def _quantised(words: dict[str, str], row_bytes: int) -> QuantisedRows:
    try:
        return QuantisedRows.of(words.get("rows", ""), words.get("rows.rotation", ""), row_bytes)
    except KeyError as unknown:
        raise _Wrong(f"its rows are {unknown}, and only q8_0, q4_0 and q4_0+q4_0 are known here", Status.UNSUPPORTED) from None
    except ValueError as wrong:
        raise _Wrong(str(wrong)) from None


def _under(prefix: str, words: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in words.items() if key.startswith(prefix)}


def _count(words: dict[str, str], key: str) -> int:
    value = words.get(key, "")
    if not value.isdigit() or not 0 < int(value) < 2**31:
        raise _Wrong(f"the metadata's {key} is {value or 'missing'}, no count of tokens")
    return int(value)


def _number(words: dict[str, str], key: str) -> float | None:
    if key not in words:
        return None
    try:
        value = float(words[key])
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _Wrong(f"the metadata's {key} is {words[key]}, no number of at least 0")
    return value or None


def _rope(words: dict[str, str]) -> Rope:
    return Rope(
        theta=_number(words, "rope.theta") or 0.0,
        interleaved=words.get("rope.interleaved") == "true",
        order_known=words.get("rope.interleaved") != "unknown",
        model_interleaved=words.get("rope.model_interleaved") == "true",
        dims=int(_number(words, "rope.dims") or 0),
        scaling=words.get("rope.scaling", ""),
    )


def rope_of(config) -> Rope:
    """What a model's config says of its full-attention layers; theta 0 where it says nothing.

    transformers 5 has rope_parameters (of a hybrid: one per layer type), 4 rope_theta and rope_scaling.
    """
    config = config.get_text_config(decoder=True)
    found = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in found:
        found = found["full_attention"]
    theta = found.get("rope_theta") or getattr(config, "rope_theta", None) or 0.0
    scaling = dict(found) or dict(getattr(config, "rope_scaling", None) or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    scaling.pop("rope_theta", None)
    head_dim = _head_dim_of(config)
    if head_dim is None or is_mla(config):
        return Rope()
    share = found.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    dims = getattr(config, "rotary_dim", None) or int(head_dim * share)
    pairs = _turns_pairs(config.model_type)
    return Rope(
        theta=float(theta),
        interleaved=pairs,
        model_interleaved=pairs,
        dims=0 if dims == head_dim else dims,
        scaling="" if kind == "default" else json.dumps(scaling, sort_keys=True),
    )


def kv_shape_of(config) -> tuple[int, int, int] | None:
    """(layers, KV heads, head_dim of K) of a model's cache; None where the config does not say."""
    if config is None:
        return None
    config = config.get_text_config(decoder=True)
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    kv_heads = getattr(config, "num_key_value_heads", None) if _declares(config, "num_key_value_heads") else None
    if kv_heads is None:  # DBRX.
        kv_heads = getattr(getattr(config, "attn_config", None), "kv_n_heads", None)
    if kv_heads is None:  # Falcon and GPT-BigCode; Falcon's new decoders store a head per query head.
        single = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
        kv_heads = 1 if single else heads
    found = (layers, kv_heads, _head_dim_of(config))
    return found if all(isinstance(each, int) and each > 0 for each in found) else None


def _declares(config, name: str) -> bool:
    """Whether the model reads this: transformers keeps any name that a config was given."""
    known = set(getattr(type(config), "__dataclass_fields__", ())) | set(getattr(config, "attribute_map", ()))
    return name in known or hasattr(type(config), name) or name in inspect.signature(type(config).__init__).parameters


def _head_dim_of(config) -> int | None:
    found = getattr(config, "head_dim", None) if _declares(config, "head_dim") else None
    if found is None and getattr(config, "hidden_size", None) and getattr(config, "num_attention_heads", None):
        found = config.hidden_size // config.num_attention_heads
    return found


def is_mla(config) -> bool:
    """Multi-head latent attention (DeepSeek and the like): K and V of different width, and only K's last dims turn."""
    config = config.get_text_config(decoder=True)
    return isinstance(getattr(config, "kv_lora_rank", None), int) and hasattr(config, "qk_rope_head_dim")


@functools.cache
def _turns_pairs(model_type: str) -> bool:
    """Whether transformers' code for a model turns adjacent pairs of dims, by what it makes of 0, 1, 2, 3."""
    name = model_type.removesuffix("_text")
    if name == "llama4":  # Pairs as complex numbers.
        return True
    with contextlib.suppress(ImportError):
        code = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        turn = getattr(code, "rotate_half", None) or getattr(code, "rotate_every_two", None)
        if turn is not None:
            return turn(torch.arange(4.0).view(1, 1, 1, 4)).flatten().tolist() == [-1.0, 0.0, -3.0, 2.0]
    return False


def reordered(rows: torch.Tensor, rope: Rope, to: Rope) -> torch.Tensor:
    """Keys or queries […, D] in the order of dims that `rope` says, in that of `to`."""
    if rope.interleaved == to.interleaved:
        return rows
    dims = rope.dims or to.dims
    return halves_of_pairs(rows, dims) if rope.interleaved else pairs_of_halves(rows, dims)


def halves_of_pairs(rows: torch.Tensor, dims: int = 0) -> torch.Tensor:
    """[…, D] whose first `dims` (0: all) are adjacent pairs, in the order of the two halves. See pairs_of_halves."""
    turned = dims or rows.shape[-1]
    paired = rows[..., :turned]
    return torch.cat([paired[..., 0::2], paired[..., 1::2], rows[..., turned:]], dim=-1)


def pairs_of_halves(rows: torch.Tensor, dims: int = 0) -> torch.Tensor:
    """Undoes halves_of_pairs."""
    turned = dims or rows.shape[-1]
    first, second = rows[..., : turned // 2], rows[..., turned // 2 : turned]
    return torch.cat([torch.stack([first, second], dim=-1).flatten(-2), rows[..., turned:]], dim=-1)
