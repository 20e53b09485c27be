"""dkv_cuda.h for ctypes: where libdkv_cuda is, and its functions."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from ctypes import POINTER, c_char, c_char_p, c_int32, c_uint32, c_uint64, c_void_p

from . import _abi


class Device(_abi.Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("ordinal", c_int32),
        ("uuid", c_char * 48),
        ("name", c_char * 256),
        ("bytes", c_uint64),
        ("major", c_int32),
        ("minor", c_int32),
        ("multiprocessors", c_uint32),
    ]


_PROTOTYPES = {
    "dkv_cuda_built_with": (c_char_p, []),
    "dkv_cuda_is_emulated": (c_int32, []),
    "dkv_cuda_device_count": (c_int32, [POINTER(c_uint32)]),
    "dkv_cuda_get_device": (c_int32, [c_uint32, POINTER(Device)]),
    "dkv_cuda_get_device_of": (c_int32, [c_void_p, POINTER(Device)]),
    "dkv_cuda_arena_create": (c_int32, [c_char_p, c_uint64, c_uint32, POINTER(c_void_p)]),
    "dkv_cuda_arena_adopt": (c_int32, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "dkv_cuda_engine_open": (c_int32, [POINTER(_abi.EngineOptions), POINTER(c_void_p)]),
    "dkv_cuda_layer_ready": (c_int32, [c_void_p, POINTER(_abi.LayerReady), c_void_p]),
    "dkv_cuda_copy_to_host": (c_int32, [c_void_p, c_void_p, c_uint64]),
    "dkv_cuda_copy_to_device": (c_int32, [c_void_p, c_void_p, c_uint64, c_void_p]),
}


def _candidates() -> list[str]:
    given = os.environ.get("DKV_CUDA_LIBRARY")
    if given:
        return [given]
    beside = pathlib.Path(_abi.library()._name).resolve().parent  # The two are of one version.
    found = [beside / name for name in ("libdkv_cuda.so.1", "libdkv_cuda.so")]
    return [str(path) for path in found if path.exists()] + ["libdkv_cuda.so.1"]


@functools.cache
def library() -> ctypes.CDLL:
    """libdkv_cuda, loaded at the first use. Raises DkvError (NOT_FOUND), naming what was tried."""
    _abi.library()  # Which libdkv it uses was decided there.
    missing = "no libdkv_cuda ({}); build dkv where a CUDA toolkit is, or set DKV_CUDA_LIBRARY"
    return _abi.load(_candidates(), _PROTOTYPES, missing)


def call(name: str, *arguments) -> None:
    """Calls a function that returns a dkv_status. Raises DkvError for any but DKV_OK."""
    _abi.check(getattr(library(), name)(*arguments))
