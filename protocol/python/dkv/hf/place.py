"""Where a cache's rows live: host memory that the sidecar maps, or a GPU's that it opens."""

from __future__ import annotations

import logging
import os

import torch

import dkv

log = logging.getLogger("dkv.hf")


class HostPlace:
    """Shared memory: one sparse arena, which gives single pages back."""

    device = "cpu"
    sparse = True

    def arena(self, bytes: int) -> dkv.Arena:
        return dkv.Arena(bytes)

    def ready_options(self) -> dict:
        return {}


class DevicePlace:
    """A GPU's memory, outside of torch's allocator: an arena is one allocation, and goes as a whole."""

    sparse = False

    def __init__(self, uuid: str, device: torch.device):
        self.device, self._torch_device = uuid, device

    def arena(self, bytes: int) -> dkv.cuda.DeviceArena:
        return dkv.cuda.DeviceArena(bytes, self.device)

    def ready_options(self) -> dict:
        """The rows are written by what torch has queued, without waiting for it."""
        on_gpu = self._torch_device.type == "cuda"
        return {"stream": torch.cuda.current_stream(self._torch_device).cuda_stream if on_gpu else 0}


def give_back(arena: dkv.Arena, offset: int = 0, bytes: int | None = None) -> None:
    """Releases a range, or all. A sidecar that is slow to let go of device memory costs no generation: the
    memory is freed when it has."""
    try:
        arena.release(offset, arena.bytes if bytes is None else bytes)
    except dkv.DkvError as error:
        if error.status != dkv.Status.DEADLINE_EXCEEDED:
            raise
        log.info("dkv: %s", error)


def place_of(wish: object, device: torch.device) -> HostPlace | DevicePlace:
    """For tensors on `device`; `wish` (None: DKV_DEVICE in the environment) can only say otherwise on
    the emulation, where both memories are one.

    Raises DkvError: UNSUPPORTED for a device, or a wish, that rows cannot be on; those of dkv.cuda.
    """
    wish = wish if wish is not None else os.environ.get("DKV_DEVICE") or None
    if device.type not in ("cpu", "cuda"):
        raise dkv.DkvError(dkv.Status.UNSUPPORTED, f"K and V are on {device}: only CPUs and CUDA GPUs are supported")
    if device.type == "cuda":
        uuid = dkv.cuda.uuid_of(device)
        if wish is None or dkv.cuda.uuid_of(wish) == uuid:
            return DevicePlace(uuid, device)
    elif wish is None or str(wish) == "cpu":
        return HostPlace()
    elif dkv.cuda.is_emulated():
        return DevicePlace(dkv.cuda.uuid_of(wish), device)
    raise dkv.DkvError(
        dkv.Status.UNSUPPORTED, f"K and V are on {device}, and rows on {wish} were asked for: {_why(wish)}"
    )


def _why(wish: object) -> str:
    return dkv.cuda.why_not() or f"move the model there (model.to({str(wish)!r}))"
