"""Device memory for engines on a GPU, through libdkv_cuda. Importing this needs neither.

    if dkv.cuda.available():
        gpu = dkv.cuda.devices()[0]
        engine = dkv.Engine(geometry, device=gpu.uuid)
        keys = dkv.cuda.DeviceArena(bytes, gpu.uuid)      # torch.as_tensor(keys) is a view of it
        ...
        session.layer_ready(layer, ..., stream=torch.cuda.current_stream().cuda_stream)

Where there is no GPU, why_not() says why.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum

from . import _abi, _dlpack
from .arena import Arena, _Memory
from .words import DkvError, Status


class ArenaKind(enum.IntEnum):
    """How device memory is made, and so how the sidecar opens it."""

    DEFAULT = 0  # MALLOC; DKV_CUDA_ARENA=vmm in the environment changes it.
    MALLOC = 1  # cudaMalloc: a CUDA IPC handle
    VMM = 2  # cuMemCreate: a file descriptor over a Unix socket


@dataclasses.dataclass(frozen=True)
class Device:
    ordinal: int  # In this process.
    uuid: str  # "GPU-…", the same in every process.
    name: str
    bytes: int
    compute_capability: tuple[int, int]
    multiprocessors: int


def built_with() -> str:
    """ "CUDA 13.0". Raises DkvError (NOT_FOUND) without libdkv_cuda."""
    return _abi.ffi.string(_abi.cuda_library().dkv_cuda_built_with()).decode()


def is_emulated() -> bool:
    """Whether device memory is host memory, as in dkv's own tests. False without libdkv_cuda."""
    try:
        return bool(_abi.cuda_library().dkv_cuda_is_emulated())
    except DkvError:
        return False


def devices() -> list[Device]:
    """The GPUs of this process, at least one.

    Raises DkvError: UNAVAILABLE without driver or GPU, NOT_FOUND without libdkv_cuda.
    """
    count = _abi.array("uint32_t", 1)
    _abi.call("dkv_cuda_device_count", count)
    found = []
    for index in range(count[0]):
        device = _abi.new("dkv_cuda_device")
        _abi.call("dkv_cuda_get_device", index, device)
        found.append(_device(device))
    return found


def device_of(address: int) -> Device:
    """The GPU whose memory that is. Raises DkvError: INVALID_ARGUMENT for no device memory; as devices()."""
    device = _abi.new("dkv_cuda_device")
    _abi.call("dkv_cuda_get_device_of", _pointer(address), device)
    return _device(device)


def _device(found) -> Device:
    name, uuid = (_abi.ffi.string(words).decode(errors="replace") for words in (found.name, found.uuid))
    return Device(found.ordinal, uuid, name, found.bytes, (found.major, found.minor), found.multiprocessors)


def why_not() -> str | None:
    """Why there is no GPU to use, in a line; None when there is one."""
    try:
        devices()
    except DkvError as error:
        return error.message if error.message.startswith("no GPU") else f"no GPU: {error.message}"
    return None


def available() -> bool:
    return why_not() is None


def uuid_of(device: object) -> str:
    """Of "cuda" (the first GPU), an ordinal, a UUID, or a torch.device.

    Raises DkvError: NOT_FOUND for one that this process cannot see; those of devices().
    """
    known = devices()
    text = str(device)
    if text.startswith("cuda"):
        text = text.partition(":")[2] or "0"
    if text.startswith("MIG-"):  # nvidia-smi's word for a part of a GPU; the number is the same.
        text = "GPU-" + text[4:]
    for found in known:
        if text in (found.uuid, str(found.ordinal)):
            return found.uuid
    raise DkvError(
        Status.NOT_FOUND, f"device '{device}' is not one of this process's: {', '.join(gpu.uuid for gpu in known)}"
    )


class _Lent(_Memory):
    """Memory that is `lender`'s, who must not free it while the sidecar has it mapped."""

    _kept: list[object] = []

    def __init__(self, handle, lender: object):
        super().__init__(handle)
        self._lender = lender
        self._release, self._bytes = _abi.library().dkv_arena_release, _abi.library().dkv_arena_bytes

    def __del__(self):
        if self._release(self.handle, 0, self._bytes(self.handle)) == Status.DEADLINE_EXCEEDED:
            self._kept.append(self._lender)  # Nobody says when it is safe: for good.
        super().__del__()


class DeviceArena(Arena):
    """Device memory that this process owns: zeroed, one allocation, outside of torch's allocator.

    bytes    its size
    device   a UUID, an ordinal, "cuda" or a torch.device
    kind     cudaMalloc by default

    torch.as_tensor(arena) and torch.from_dlpack(arena) are its bytes without a copy, and keep it
    alive; tensor() is the same in a dtype. release() of the whole arena, or its end, frees the memory
    when the sidecar has let go; release() of a part does nothing. Do not touch tensors over it then.

    Raises DkvError: NOT_FOUND for the device, LIMIT_EXCEEDED when it is full, UNAVAILABLE, UNSUPPORTED.
    """

    def __init__(self, bytes: int, device: object = "cuda", kind: ArenaKind = ArenaKind.DEFAULT):
        uuid, handle = uuid_of(device), _abi.handle("dkv_arena")
        _abi.call("dkv_cuda_arena_create", uuid.encode(), bytes, kind, handle)
        self._memory = _Memory(handle[0])
        self.device = uuid

    @classmethod
    def _of(cls, handle, device: str) -> "DeviceArena":
        arena = super()._of(handle)
        arena.device = device
        return arena

    @classmethod
    def adopt(cls, array: object) -> "DeviceArena":
        """Lends memory that another library allocated: a tensor on a GPU (all of its storage), or anything with
        a contiguous __cuda_array_interface__. Keeps it alive; offset_of() says where a tensor lies in it.

        Raises DkvError: UNSUPPORTED, with the hint that helps, for memory that no other process can open
        (torch's expandable segments); INVALID_ARGUMENT for memory that is not a device's.
        """
        address, bytes = _extent(array)
        handle = _abi.handle("dkv_arena")
        _abi.call("dkv_cuda_arena_adopt", _pointer(address), bytes, handle)
        arena = cls.__new__(cls)
        arena._memory = _Lent(handle[0], array)
        arena.device = device_of(address).uuid
        return arena

    def offset_of(self, tensor: object) -> int:
        """Bytes from the arena's base to a tensor inside it. Raises DkvError (INVALID_ARGUMENT)."""
        address = _address(tensor)
        if not self.base <= address < self.base + self.bytes:
            raise DkvError(Status.INVALID_ARGUMENT, f"address {address:#x} is not inside this arena")
        return address - self.base

    def part(self, offset: int, bytes: int) -> ctypes.Array:
        """As Arena.part(), on the emulation only. Raises DkvError (UNSUPPORTED) on a GPU."""
        if not is_emulated():
            raise DkvError(Status.UNSUPPORTED, "device memory has no buffer on the host: torch.as_tensor(arena)")
        return super().part(offset, bytes)

    def tensor(self, dtype):
        """All of it as one flat torch tensor."""
        import torch

        with torch.inference_mode(False):
            if is_emulated():
                return torch.frombuffer(self.buffer, dtype=dtype, count=self.bytes // dtype.itemsize)
            whole = self.bytes // dtype.itemsize * dtype.itemsize
            return torch.as_tensor(self)[:whole].view(dtype)

    @property
    def __cuda_array_interface__(self) -> dict:
        return {
            "shape": (self.bytes,),
            "typestr": "|u1",
            "data": (self.base, False),
            "version": 3,
            "strides": None,
            "stream": None,  # Zeroed and synchronised when it was made.
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        if is_emulated():
            return (_dlpack.CPU, 0)
        return (_dlpack.CUDA, next(gpu.ordinal for gpu in devices() if gpu.uuid == self.device))

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Raises BufferError for a copy, or another device. There is no work to wait for on `stream`."""
        if copy:
            raise BufferError("a DeviceArena is its bytes, never a copy of them")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(f"this DeviceArena is on device {self.__dlpack_device__()}, not on {tuple(dl_device)}")
        return _dlpack.capsule(self.base, self.bytes, self.__dlpack_device__(), self._memory)


def copy_to_host(address: int, bytes: int) -> bytes:
    """Device memory's bytes, wherever it is. Raises DkvError (INVALID_ARGUMENT) for no device memory."""
    target = _abi.array("char", bytes)
    _abi.call("dkv_cuda_copy_to_host", target, _pointer(address), bytes)
    return _abi.ffi.buffer(target)[:]


def copy_to_device(address: int, data: bytes, stream: int = 0) -> None:
    """Behind what is queued on `stream`; waits for it."""
    _abi.call("dkv_cuda_copy_to_device", _pointer(address), data, len(data), _pointer(stream))


def _pointer(address: int):
    return _abi.ffi.cast("void *", address)


def _address(array: object) -> int:
    pointer = getattr(array, "data_ptr", None)
    return pointer() if pointer is not None else array.__cuda_array_interface__["data"][0]


def _extent(array: object) -> tuple[int, int]:
    """Address and bytes of a tensor's storage, or of a contiguous array."""
    storage = getattr(array, "untyped_storage", None)
    if storage is not None:
        return storage().data_ptr(), storage().nbytes()
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise DkvError(Status.INVALID_ARGUMENT, f"{type(array).__name__} has no __cuda_array_interface__")
    bytes = int(interface["typestr"][2:])
    dense = []
    for extent in reversed(interface["shape"]):
        dense.insert(0, bytes)
        bytes *= extent
    strides = interface.get("strides")
    if bytes != 0 and strides is not None and tuple(strides) != tuple(dense):
        raise DkvError(
            Status.INVALID_ARGUMENT, f"only contiguous arrays can be lent: this one has strides {tuple(strides)}"
        )
    return interface["data"][0], bytes
