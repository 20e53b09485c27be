"""Rows of fewer bits, as `dkv compact --bits` writes them: each turned by a Hadamard matrix, in ggml's blocks of 32.
Refined rows (q4_0+q4_0) have what that leaves off in blocks of their own.

    q8_0    34 bytes: a scale in f16, 32 signed numbers
    q4_0    18 bytes: a scale in f16, 16 bytes whose low halves are the first 16 numbers, plus 8, and whose high halves
            are the others
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_BLOCK = 32
_BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}


@dataclass(frozen=True)
class QuantisedRows:
    type: str
    rotation: int  # Elements of each run that was turned; divides head_dim.
    head_dim: int
    refined: bool = False  # Some rows are.

    @classmethod
    def of(cls, type: str, rotation: str, row_bytes: int) -> "QuantisedRows":
        """Raises KeyError for an unknown type, ValueError for rows that are not whole blocks or runs."""
        name, refined = type, type == "q4_0+q4_0"
        type = "q4_0" if refined else type
        if type not in _BLOCK_BYTES:
            raise KeyError(name)
        blocks, rest = divmod(row_bytes, _BLOCK_BYTES[type])
        run = int(rotation) if rotation.isdigit() else 0
        if rest or not blocks:
            raise ValueError(f"rows of {row_bytes} bytes are not blocks of {type}, of {_BLOCK_BYTES[type]} bytes")
        if run < 1 or run & (run - 1) or blocks * _BLOCK % run:
            raise ValueError(f"the metadata's rows.rotation is {rotation or 'missing'}, of rows of {blocks * _BLOCK} dims")
        return cls(type, run, blocks * _BLOCK, refined)

    @property
    def row_bytes(self) -> int:
        return self.head_dim // _BLOCK * _BLOCK_BYTES[self.type]

    def unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """packed […, row_bytes] uint8; returns […, head_dim] f32."""
        blocks = packed.unflatten(-1, (-1, _BLOCK_BYTES[self.type]))
        scale = blocks[..., :2].contiguous().view(torch.float16).float()
        codes = blocks[..., 2:]
        if self.type == "q8_0":
            numbers = codes.contiguous().view(torch.int8).float()
        else:
            numbers = torch.cat([codes & 15, codes >> 4], dim=-1).float() - 8
        return turned((scale * numbers).flatten(-2), self.rotation)


def turned(rows: torch.Tensor, run: int) -> torch.Tensor:
    """Each run of `run` elements, a power of two, times a Hadamard matrix, which is its own inverse. Without the matrix: a
    file says how long a run is."""
    runs, half = rows.unflatten(-1, (-1, run)), 1
    while half < run:
        first, second = runs.unflatten(-1, (-1, 2, half)).unbind(-2)
        runs = torch.stack([first + second, first - second], -2).flatten(-3)
        half *= 2
    return (runs / run**0.5).flatten(-2)
