"""The calibrated profile of a GGUF file: the one that was made for these very weights. torch is not needed."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import logging
import struct
from pathlib import Path

from ..errors import DkvError
from ..profile_folders import paths
from ..words import Profile, Surrogate

_log = logging.getLogger("dkv.llama")

_FORMAT = ("dkv-profile", 1)
_SURROGATE = 1  # Its version.
_SAMPLE = 512  # Of a tensor's values, as in dkv.hf's fingerprint.
_GEMMA3_FULL = 6  # Every sixth layer is full; its GGUF files do not say so.


def find(path: str) -> Profile | None:
    """None: there is none, or the package gguf is not installed. Logs which it is, or why there is none.

    Raises FileNotFoundError.
    """
    try:
        reader = _open(path)
        geometry = _geometry(reader)
        weights = _fingerprint(reader, geometry)
        for place in paths():
            found = _read(place, weights, geometry)
            if found is not None:
                _log.info("the profile of %s is %s", path, place)
                return _in_order(found, reader)
    except ImportError:
        _log.info("profiles are not looked for: pip install gguf")
        return None
    except FileNotFoundError:
        raise
    except Exception as error:  # Of a type of tensor that gguf does not know, for example: no reason not to start.
        _log.info("no profile is looked for, since %s is not read as a model that has one: %s", path, error)
        return None
    _log.info("no profile was made for the weights of %s", path)
    return None


def _read(place: Path, weights: str, geometry: dict) -> Profile | None:
    """None: it is for another model, or not a profile."""
    try:
        made = json.loads(place.read_text())
        model = made["model"]
        if (made["format"], made["version"]) != _FORMAT or (model["weights"], model["geometry"]) != (weights, geometry):
            return None
        predictor = made.get("surrogate")
        if predictor is not None:
            rope, rows = predictor["rope"], b"".join(map(bytes.fromhex, predictor["weights"]))
            shape = heads, dims = geometry["kv_heads"], geometry["head_dim"]
            if (predictor["version"], predictor["features"]) != (_SURROGATE, 2 * heads * dims + 2 * heads + 1):
                return None
            predictor = Surrogate(*shape, rows, tuple(rope["frequencies"]), rope["interleaved"])
        return Profile(place.stem, made["weights"], made["alpha"], made["floor"], made.get("kernel", 7), predictor)
    except (OSError, ValueError, KeyError, TypeError, DkvError):
        return None


def _in_order(profile: Profile, reader) -> Profile:
    surrogate = profile.surrogate
    if surrogate is None or surrogate.interleaved or not _turns_pairs(reader):
        return profile
    return dataclasses.replace(profile, surrogate=in_pairs(surrogate))


def in_pairs(surrogate: Surrogate) -> Surrogate:
    """For keys whose dims (2i, 2i + 1) turn together, as llama.cpp has Llama's; the file's are (i, i + pairs)."""
    heads, dims, pairs = surrogate.kv_heads, surrogate.head_dim, len(surrogate.frequencies)
    order = [dim for pair in range(pairs) for dim in (pair, pair + pairs)] + [*range(2 * pairs, dims)]
    rows = array.array("H", surrogate.weights)
    features = surrogate.layer_bytes // 2 // heads
    for row in range(0, len(rows), features):
        for at in range(row, row + heads * dims, dims):
            key = rows[at : at + dims]
            rows[at : at + dims] = array.array("H", [key[dim] for dim in order])
    return dataclasses.replace(surrogate, weights=rows.tobytes(), interleaved=True)


def _open(path: str):
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        """Passes over the words of a vocabulary, which take gguf's own reader seconds."""

        def _get_field_parts(self, orig_offs: int, raw_type: int):
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
            if kind != GGUFValueType.STRING:
                return super()._get_field_parts(orig_offs, raw_type) if count < 1000 else self._skip(orig_offs, kind, count)
            end = orig_offs + 12
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", self.data, end)[0]
            return end - orig_offs, [], [], [GGUFValueType.ARRAY]

        def _skip(self, begin: int, kind: int, count: int):
            size = self.gguf_scalar_to_np[GGUFValueType(kind)]().itemsize
            return 12 + count * size, [], [], [GGUFValueType.ARRAY]

    return Reader(path)


def _said(reader, key: str):
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _turns_pairs(reader) -> bool:
    return _said(reader, "general.architecture") == "llama"


def _geometry(reader) -> dict:
    name = _said(reader, "general.architecture")
    layers, heads = _said(reader, f"{name}.block_count"), _said(reader, f"{name}.attention.head_count")
    sliding = bool(_said(reader, f"{name}.attention.sliding_window"))
    full = [layer for layer in range(layers) if not sliding or (layer + 1) % _GEMMA3_FULL == 0]
    return {
        "layers": layers,
        "compressed": full,
        "q_heads": heads,
        "kv_heads": _said(reader, f"{name}.attention.head_count_kv") or heads,
        "head_dim": _said(reader, f"{name}.attention.key_length") or _said(reader, f"{name}.embedding_length") // heads,
    }


def _fingerprint(reader, geometry: dict) -> str:
    """That of dkv.hf's profile_file, of the same weights: K and V of each layer, in the order of their names."""
    digest = hashlib.sha256()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for layer in sorted(map(str, range(geometry["layers"]))):
        for part in ("k", "v"):
            tensor = tensors[f"blk.{layer}.attn_{part}.weight"]
            digest.update(_sampled(tensor, geometry["kv_heads"] if part == "k" and _turns_pairs(reader) else 0))
    return digest.hexdigest()[:16]


def _sampled(tensor, heads: int) -> bytes:
    """Some of a matrix's values, as bfloat16 in float32. `heads`: its rows are in llama.cpp's order, of so many heads."""
    import gguf
    import numpy

    columns, rows = (int(size) for size in tensor.shape)
    step = max(1, rows * columns // _SAMPLE)
    at = numpy.arange(0, rows * columns, step)[:_SAMPLE]
    row, column = at // columns, at % columns
    if heads:  # Hugging Face's row [head, half, pair] is llama.cpp's [head, pair, half].
        pairs = rows // heads // 2
        head, half, pair = row // (2 * pairs), row // pairs % 2, row % pairs
        row = (head * pairs + pair) * 2 + half
    wanted, back = numpy.unique(row, return_inverse=True)
    values = gguf.quants.dequantize(tensor.data[wanted], tensor.tensor_type)[back, column]
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(numpy.uint32).tobytes()
