"""Pointers of llama.cpp's Python bindings: of cffi's and of ctypes'."""

from __future__ import annotations

import ctypes

from .._abi import ffi


def address(pointer: object) -> int:
    """Of a pointer or a function of cffi's or ctypes', or a number; None: 0."""
    if pointer is None or isinstance(pointer, int):
        return pointer or 0
    if isinstance(pointer, ffi.CData):
        return int(ffi.cast("uintptr_t", pointer))
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def set_callback(params: object, callback: int, data: int) -> None:
    """cb_eval and cb_eval_user_data of a llama_context_params."""
    if isinstance(params, ctypes.Structure):
        params.cb_eval = ctypes.cast(callback, dict(params._fields_)["cb_eval"])
        params.cb_eval_user_data = data
    else:
        params.cb_eval = ffi.cast(ffi.typeof(params.cb_eval), callback)
        params.cb_eval_user_data = ffi.cast("void *", data)
