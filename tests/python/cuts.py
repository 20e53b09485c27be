"""Compacted files cut by hand with the safetensors library, as another program might write them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Keep = Callable[[int, int, int], list[int]]  # (layer, kv head, prompt tokens) → positions, ascending


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())


def cut(source: Path, target: Path, keep: Keep, crcs: bool = True) -> Path:
    """`source` with the rows that `keep` names; without its queries."""
    tensors, words = read(source)
    words = unsummed(words)
    count, made = int(words["n_prompt"]), {}
    if "tokens" in tensors:
        made["tokens"] = tensors["tokens"]
    layer = 0
    while f"layers.{layer}.keys" in tensors:
        name = f"layers.{layer}."
        kept = [keep(layer, head, count) for head in range(tensors[name + "keys"].shape[0])]
        for part in ("keys", "values"):
            rows = [tensors[name + part][head, positions] for head, positions in enumerate(kept)]
            made[name + part] = torch.stack(rows) if _alike(kept) else torch.cat(rows)
        flat = torch.tensor([position for positions in kept for position in positions], dtype=torch.int32)
        made[name + "positions"] = flat.view(len(kept), -1) if _alike(kept) else flat
        if not _alike(kept):
            ends = torch.tensor([len(positions) for positions in kept]).cumsum(0)
            made[name + "head_offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()
        layer += 1
    return write(target, made, words, crcs)


def unsummed(words: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in words.items() if not key.startswith("crc32")}


def write(path: Path, tensors: dict[str, torch.Tensor], words: dict[str, str], crcs: bool = True) -> Path:
    """With checksums of its own, or with those that `words` have."""
    if crcs:
        sums = {f"crc32.{name}": f"{zlib.crc32(bytes_of(tensor)):08x}" for name, tensor in tensors.items()}
        words = words | sums | {"crc32": "0" * 8}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=words)
    if crcs:
        seal(path)
    return path


def seal(path: Path) -> None:
    """The header's own checksum into its place."""
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    place = data.index(b'"crc32":"') + len(b'"crc32":"')
    data[place : place + 8] = b"0" * 8
    data[place : place + 8] = f"{zlib.crc32(data[8:end]):08x}".encode()
    path.write_bytes(data)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _alike(kept: list[list[int]]) -> bool:
    return len({len(positions) for positions in kept}) == 1
