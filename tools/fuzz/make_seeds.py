#!/usr/bin/env python3
"""Writes tools/fuzz/seeds: one small right file of every kind that each reader knows.

tools/fuzz/make_seeds.py
"""

from __future__ import annotations

import json
import pathlib
import struct

SEEDS = pathlib.Path(__file__).parent / "seeds"
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}
LAYERS, HEADS, TOKENS, DIM = 2, 2, 5, 4


def safetensors(tensors: dict[str, tuple[str, list[int], bytes | None]], metadata: dict[str, str] | None) -> bytes:
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        size = BYTES[dtype]
        for extent in shape:
            size *= extent
        content = bytes(size) if content is None else content
        assert len(content) == size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def ints(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def dkv_seeds() -> dict[str, bytes]:
    metadata = {"format": "dkv", "version": "1", "model": "m", "n_prompt": str(TOKENS)}
    facts = metadata | {"rope_theta": "10000", "scale": "0.5", "softcap": "30"}
    whole, uniform, ragged = {}, {}, {}
    for layer in range(LAYERS):
        name = f"layers.{layer}."
        for part in ("keys", "values"):
            whole[name + part] = ("F32", [HEADS, TOKENS, DIM], None)
            uniform[name + part] = ("F16", [HEADS, 3, DIM], None)
            ragged[name + part] = ("BF16", [5, DIM], None)
        whole[name + "q_window"] = ("F32", [2 * HEADS, 2, DIM], None)
        uniform[name + "positions"] = ("I32", [HEADS, 3], ints(0, 3, 4, 1, 3, 4))
        ragged[name + "positions"] = ("I32", [5], ints(0, 3, 4, 3, 4))
        ragged[name + "head_offsets"] = ("I32", [HEADS + 1], ints(0, 3, 5))
    whole["tokens"] = ("I32", [TOKENS], ints(1, 2, 3, 4, 5))
    plain = {name: tensor for name, tensor in whole.items() if name != "tokens"}
    whole["layers.1.sink_logits"] = ("F32", [2 * HEADS], None)
    return {
        "whole": safetensors(plain, metadata),
        "facts": safetensors(whole, facts),
        "uniform": safetensors(uniform, metadata),
        "ragged": safetensors(ragged, metadata),
    }


def hf_seeds() -> dict[str, bytes]:
    def cache(shape: list[int], extra: dict) -> dict:
        tensors = {}
        for layer in range(LAYERS):
            tensors |= {f"{part}_{layer}": ("F16", shape, None) for part in ("k", "v")}
            tensors |= {f"{name}_{layer}": tensor for name, tensor in extra.items()}
        return tensors

    positions = {"positions": ("I32", [HEADS, 3], ints(0, 3, 4, 1, 3, 4))}
    return {
        "whole": safetensors(cache([HEADS, TOKENS, DIM], {}), None),
        "batch": safetensors(cache([1, HEADS, TOKENS, DIM], {}), {"format": "pt"}),
        "compacted": safetensors(cache([HEADS, 3, DIM], positions), {"n_prompt": "5"}),
    }


def mlx_seeds() -> dict[str, bytes]:
    tensors, counts = {}, {}
    old, new = {"1.model": "m"}, {"0.model": "m", "2.0": ""}
    for layer in range(LAYERS):
        tensors |= {f"{layer}.{part}": ("BF16", [1, HEADS, TOKENS, DIM], None) for part in (0, 1)}
        counts |= {f"{layer}.2": ("I32", [], ints(TOKENS - 1))}
        old |= {f"0.{layer}": "", f"2.{layer}": "KVCache"}
        new |= {f"1.{layer}": "KVCache", f"2.{layer + 1}.0": f"{layer}.2", f"2.{layer + 1}.1": "scalar"}
    return {"whole": safetensors(tensors, old), "counted": safetensors(tensors | counts, new)}


def llama_body(transposed: bool, positions: tuple[int, ...], streams: int = 1, rotation: tuple[int, ...] = ()) -> bytes:
    row, cells = HEADS * DIM, len(positions)
    body = struct.pack("<II", streams, cells)
    for position in positions:
        body += struct.pack("<iIi", position, 1, 0)
    body += struct.pack("<II", transposed, LAYERS) + ints(*rotation)
    for part in (0, 1):
        turned = transposed and part == 1
        for _ in range(LAYERS):
            body += struct.pack("<iII", 1, 2, row) if turned else struct.pack("<iQ", 1, 2 * row)
            body += bytes(2 * row * cells)
    return body + bytes(4 * (streams - 1))


def llama_q8_body() -> bytes:
    """Two heads of one block of 32 in each row, rotated."""
    body = struct.pack("<II", 1, 2) + struct.pack("<iIiiIi", 0, 1, 0, 1, 1, 0) + struct.pack("<4I", 0, 1, 32, 32)
    rows = (struct.pack("<H", 0x3C00) + bytes(range(32))) * 4
    return body + (struct.pack("<iQ", 8, 68) + rows) * 2


def llama_seeds() -> tuple[dict[str, bytes], dict[str, bytes]]:
    ids = (7, 8, 9, 10, 11)
    packed = (-1, 1, len(ids), *ids, 0)
    whole, cut = (0, 1, 2, 3, 4), (0, 4, 2)

    def file(magic: int, version: int, words: tuple[int, ...]) -> bytes:
        return struct.pack("<III", magic, version, len(words)) + ints(*words)

    slots = {
        "slot": file(0x67677371, 3, packed) + llama_body(False, whole),
        "transposed": file(0x67677371, 2, ids) + llama_body(True, whole),
        "cut": file(0x67677371, 3, ids) + llama_body(False, cut, streams=2),
        "four": file(0x67677371, 4, packed) + llama_body(False, whole, rotation=(0, 0)),
        "q8": file(0x67677371, 4, (7, 8)) + llama_q8_body(),
        "media": file(0x67677371, 3, (*packed[:-1], 1, 2, 8, 0, 7, 7)) + llama_body(False, whole),
        "checkpoint": file(0x67677371, 3, ids) + llama_body(False, whole)
        + b"SCKP" + struct.pack("<IIqiiQQQ", 1, 1, 3, 0, 2, 0, 0, 0),
        "session": file(0x6767736E, 10, ids) + struct.pack("<I", 5) + b"llama" + llama_body(False, whole),
    }
    states = {
        "blob": struct.pack("<Ii", 0xAF143CD8, 0) + llama_body(False, whole),
        "transposed": struct.pack("<Ii", 0xAF143CD8, 0) + llama_body(True, cut),
        "rotated": struct.pack("<Ii", 0xAF143CD8, 0) + llama_q8_body(),
        "bare": llama_body(False, whole),
    }
    return slots, states


def lmcache_seeds() -> dict[str, bytes]:
    shape = (2, LAYERS, TOKENS, HEADS * DIM)
    size = 2 * LAYERS * TOKENS * HEADS * DIM * 2
    return {"chunk": struct.pack("<7i", size, 1, 1, *shape) + bytes(size)}


def vllm_seeds() -> dict[str, bytes]:
    shapes = {"2thd": [2, TOKENS, HEADS, DIM], "t2hd": [TOKENS, 2, HEADS, DIM], "th2d": [TOKENS, HEADS, 2 * DIM]}
    return {name: safetensors({"kv_cache": ("BF16", shape, None)}, None) for name, shape in shapes.items()}


def main() -> None:
    slots, states = llama_seeds()
    formats = {
        "dkv": dkv_seeds(),
        "hf": hf_seeds(),
        "mlx-lm": mlx_seeds(),
        "llama-slot": slots,
        "llama-state": states,
        "lmcache": lmcache_seeds(),
        "vllm": vllm_seeds(),
    }
    for name, seeds in formats.items():
        folder = SEEDS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, content in seeds.items():
            (folder / seed).write_bytes(content)


if __name__ == "__main__":
    main()
