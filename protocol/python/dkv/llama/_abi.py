"""libdkv_llama through cffi, which reads dkv_llama.h; and pointers of llama.cpp's Python bindings."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

import cffi

from .. import _abi
from ..errors import DkvError, Status

ffi = cffi.FFI()  # Its own: the other one checks that libdkv has every function that it knows.
ffi.include(_abi.ffi)
ffi.cdef(_abi._declared("llama/dkv_llama.h"))


@functools.cache
def library():
    """libdkv_llama, beside libdkv, or DKV_LLAMA_LIBRARY. Raises DkvError (NOT_FOUND)."""
    beside = pathlib.Path(_abi.library_path()).resolve().parent / "libdkv_llama.so.1"
    path = os.environ.get("DKV_LLAMA_LIBRARY") or str(beside)
    try:
        return ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_NODELETE)
    except OSError as error:
        raise DkvError(Status.NOT_FOUND, f"no libdkv_llama ({error}); make build, or set DKV_LLAMA_LIBRARY") from None


def status_of(name: str, *arguments) -> tuple[Status, str]:
    status = Status(getattr(library(), name)(*arguments))
    return status, ffi.string(library().dkv_llama_last_error()).decode(errors="replace")


def call(name: str, *arguments) -> None:
    """Raises DkvError for any status but DKV_OK."""
    status, message = status_of(name, *arguments)
    if status != Status.OK:
        raise DkvError(status, message)


def new(kind: str, **fields):
    """A pointer to a new struct with these fields and struct_bytes; what they point to must outlive it."""
    return ffi.new(f"{kind} *", {"struct_bytes": ffi.sizeof(kind), **fields})


def address(pointer: object) -> int:
    """Of a pointer of cffi's or ctypes', or a number; None: 0."""
    if pointer is None or isinstance(pointer, int):
        return pointer or 0
    if isinstance(pointer, ffi.CData):
        return int(ffi.cast("uintptr_t", pointer))
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def set_callback(params: object, callback: int, data: int) -> None:
    """cb_eval and cb_eval_user_data of a llama_context_params of cffi's or ctypes'."""
    if isinstance(params, ctypes.Structure):
        params.cb_eval = ctypes.cast(callback, dict(params._fields_)["cb_eval"])
        params.cb_eval_user_data = data
    else:
        params.cb_eval = ffi.cast(ffi.typeof(params.cb_eval), callback)
        params.cb_eval_user_data = ffi.cast("void *", data)
