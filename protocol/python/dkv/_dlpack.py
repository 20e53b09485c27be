"""Bytes as a DLPack capsule (https://dmlc.github.io/dlpack): one dimension of uint8."""

from __future__ import annotations

import ctypes

CPU, CUDA = 1, 2  # DLDeviceType
_UINT = 1  # DLDataTypeCode


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]
_alive: dict[int, tuple] = {}  # What exported tensors need, until their consumer deletes them.


@_Deleter
def _delete(managed) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


_NAME = b"dltensor"
_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype, _capsule_new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_is = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is.restype, _capsule_is.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_capsule_get = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_get.restype, _capsule_get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy_capsule(capsule) -> None:
    """Nobody took it: a consumer would have renamed it."""
    if _capsule_is(capsule, _NAME):
        _alive.pop(_capsule_get(capsule, _NAME), None)


def capsule(address: int, bytes: int, device: tuple[int, int], owner: object):
    """Keeps `owner` alive as long as the bytes are used."""
    shape = (ctypes.c_int64 * 1)(bytes)
    managed = _Managed(
        tensor=_Tensor(address, device[0], device[1], 1, _UINT, 8, 1, shape, None, 0), context=None, deleter=_delete
    )
    at = ctypes.addressof(managed)
    _alive[at] = (managed, shape, owner)
    return _capsule_new(at, _NAME, ctypes.cast(_destroy_capsule, ctypes.c_void_p))
