"""libdkv and libdkv_cuda through cffi, which reads dkv.h and dkv_cuda.h."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import weakref

import cffi

from . import programs
from .errors import DkvError, Status

ffi = cffi.FFI()
NULL = ffi.NULL
_held: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # What the pointers of a struct lead to.


def _declared(header: str) -> str:
    """The header without the preprocessor's lines."""
    text = programs.shared(f"sdk/{header}")
    return re.sub(r"^#.*$", "", re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S), flags=re.M)


for _header in ("dkv.h", "dkv_cuda.h"):
    ffi.cdef(_declared(_header))


def _load(paths: list[str], cuda: bool, missing: str):
    """The first of these libraries that loads and has every function, and its path. Raises DkvError (NOT_FOUND),
    with `missing` around what was tried."""
    tried = []
    for path in paths:
        try:
            # Never unloaded: its threads run until the process ends, and cffi closes what it collects.
            loaded = ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_NODELETE)
            for name in dir(loaded):
                if name.startswith("dkv_cuda_") == cuda:
                    getattr(loaded, name)
            return loaded, path
        except (OSError, AttributeError) as error:
            # cffi says what the loader said, between words of its own.
            tried.append(re.sub(r"^cannot load library '[^']*': |\.  Additionally, .*$", "", str(error), flags=re.S))
    raise DkvError(Status.NOT_FOUND, missing.format("; ".join(tried)))


@functools.cache
def _library() -> tuple:
    return _load(programs.libraries(), False, "no libdkv ({}); make build, or set DKV_LIBRARY")


@functools.cache
def _cuda_library() -> tuple:
    given = os.environ.get("DKV_CUDA_LIBRARY")
    if given:
        paths = [given]
    else:
        beside = pathlib.Path(library_path()).resolve().parent  # The two are of one version.
        found = [beside / name for name in ("libdkv_cuda.so.1", "libdkv_cuda.so")]
        paths = [str(path) for path in found if path.exists()] + ["libdkv_cuda.so.1"]
    library()  # Which libdkv it uses is decided first.
    return _load(paths, True, "no libdkv_cuda ({}); build dkv where a CUDA toolkit is, or set DKV_CUDA_LIBRARY")


def library():
    """libdkv, loaded at the first use. Raises DkvError (NOT_FOUND), naming what was tried."""
    return _library()[0]


def library_path() -> str:
    return _library()[1]


def cuda_library():
    """libdkv_cuda, loaded at the first use. Raises DkvError (NOT_FOUND), naming what was tried."""
    return _cuda_library()[0]


def cuda_library_path() -> str:
    return _cuda_library()[1]


def last_error() -> str:
    return ffi.string(library().dkv_last_error()).decode(errors="replace")


def call(name: str, *arguments) -> None:
    """Calls a function that returns a dkv_status. Raises DkvError for any but DKV_OK."""
    loaded = cuda_library() if name.startswith("dkv_cuda_") else library()
    status = getattr(loaded, name)(*arguments)
    if status != Status.OK:
        raise DkvError(Status(status), last_error())


@functools.cache
def _type(kind: str) -> tuple:
    return ffi.typeof(f"{kind} *"), ffi.sizeof(kind)


def new(kind: str, inside: tuple = (), /, **fields):
    """A pointer to a new struct with these fields, or all of them `inside`; None leaves one at 0.

    struct_bytes is filled in. The struct keeps alive what its fields point to.
    """
    pointer, size = _type(kind)
    if inside:
        return ffi.new(pointer, inside)
    given = {name: value for name, value in fields.items() if value is not None}
    struct = ffi.new(pointer, {"struct_bytes": size, **given})
    if given:
        _held[struct] = list(given.values())
    return struct


def hold(struct, value):
    """`value`, which lives as long as `struct` from now on."""
    _held.setdefault(struct, []).append(value)
    return value


def array(kind: str, values):
    """A pointer to a new array; `kind` is that of an element. `values` must outlive it where they hold pointers."""
    return ffi.new(f"{kind}[]", values)


def handle(kind: str):
    """Where a function is to put a new `kind`; [0] is what it put there."""
    return ffi.new(f"{kind} **")


def text(words: str | None):
    """A C string; None: NULL."""
    return NULL if words is None else ffi.new("char[]", words.encode())


def address(pointer) -> int | None:
    return int(ffi.cast("uintptr_t", pointer)) or None


def milliseconds(seconds: float) -> int:
    """Rounded up, and never more than the ABI can say."""
    return max(0, min(int(-(-seconds * 1000 // 1)), 0xFFFFFFFF))
