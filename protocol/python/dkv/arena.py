"""Memory that an engine lends to the sidecar."""

from __future__ import annotations

import ctypes
import dataclasses

from . import _abi
from .words import ArenaKind, DkvError, Status


class _Memory:
    """The mapping itself: goes when the last of arena, buffers and tensors over them has gone."""

    def __init__(self, handle):
        self.handle = handle
        self._destroy = _abi.library().dkv_arena_destroy

    def __del__(self):
        self._destroy(self.handle)


class Arena:
    """Shared memory that this process owns: sparse, zeroed, page-aligned.

    bytes   its size; pages exist once they are touched
    kind    memfd by default; DKV_ARENA=posix_shm in the environment changes it

    A child after fork() shares it: what either writes, both see. release() raises BAD_STATE there.

    Raises DkvError: INVALID_ARGUMENT for 0 bytes, IO when the system refuses.
    """

    def __init__(self, bytes: int, kind: ArenaKind = ArenaKind.DEFAULT):
        handle = _abi.handle("dkv_arena")
        _abi.call("dkv_arena_create", bytes, kind, handle)
        self._memory = _Memory(handle[0])

    @classmethod
    def _of(cls, handle) -> "Arena":
        """Takes over what the library gave away."""
        arena = cls.__new__(cls)
        arena._memory = _Memory(handle)
        return arena

    @property
    def handle(self):
        """The dkv_arena of dkv.h."""
        return self._memory.handle

    @property
    def base(self) -> int:
        """Its address."""
        return _abi.address(_abi.library().dkv_arena_base(self.handle))

    @property
    def bytes(self) -> int:
        return _abi.library().dkv_arena_bytes(self.handle)

    @property
    def allocated_bytes(self) -> int:
        """What the system holds for it now: seen, not computed."""
        return _abi.library().dkv_arena_allocated_bytes(self.handle)

    @property
    def buffer(self) -> ctypes.Array:
        """All of it; see part()."""
        return self.part(0, self.bytes)

    def part(self, offset: int, bytes: int) -> ctypes.Array:
        """Writable bytes for numpy.frombuffer and torch.frombuffer, which keep the memory alive.

        Raises DkvError (INVALID_ARGUMENT) for a range outside.
        """
        if offset < 0 or bytes < 0 or offset + bytes > self.bytes:
            raise DkvError(
                Status.INVALID_ARGUMENT,
                f"bytes {offset} … +{bytes} are not inside an arena of {self.bytes}",
            )
        part = (ctypes.c_ubyte * bytes).from_address(self.base + offset)
        part._dkv_memory = self._memory
        return part

    def release(self, offset: int, bytes: int) -> None:
        """Gives whole pages inside the range back to the system; they read as zero again.

        Raises DkvError: INVALID_ARGUMENT for a range outside, IO.
        """
        _abi.call("dkv_arena_release", self.handle, offset, bytes)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of an engine's KV cache that a prompt lies in: token t is row t % n of block ids[t // n], n being the tokens
    of a block. `stride`: elements from a block to the next one in memory."""

    ids: list[int]
    stride: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """[heads, tokens, head_dim] inside an arena: `offset` in bytes, strides in elements."""

    arena: Arena
    offset: int
    dtype: object
    heads: int
    tokens: int
    head_dim: int
    head_stride: int
    token_stride: int
    dim_stride: int = 1
