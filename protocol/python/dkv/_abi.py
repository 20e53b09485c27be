"""libdkv, libdkv_cuda and libdkv_llama through cffi, which reads their headers."""

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


for _header in ("dkv.h", "dkv_cuda.h", "llama/dkv_llama.h"):
    ffi.cdef(_declared(_header))
_COMPANIONS = ("dkv_cuda", "dkv_llama")


@functools.cache  # Every call asks.
def _companion_of(name: str) -> str:
    """The companion library that has a function; "": libdkv."""
    return next((each for each in _COMPANIONS if name.startswith(f"{each}_")), "")


def _load(paths: list[str], companion: str, missing: str):
    """The first of these libraries that loads and has every function, and its path. Raises DkvError (NOT_FOUND),
    with `missing` around what was tried."""
    tried = []
    for path in paths:
        try:
            # Never unloaded: its threads run until the process ends, and cffi closes what it collects.
            loaded = ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_NODELETE)
            for name in dir(loaded):
                if _companion_of(name) == companion:
                    getattr(loaded, name)
            return loaded, path
        except (OSError, AttributeError) as error:
            # cffi says what the loader said, between words of its own.
            tried.append(re.sub(r"^cannot load library '[^']*': |\.  Additionally, .*$", "", str(error), flags=re.S))
    raise DkvError(Status.NOT_FOUND, missing.format("; ".join(tried)))


@functools.cache
def _library() -> tuple:
    return _load(programs.libraries(), "", "no libdkv ({}); make build, or set DKV_LIBRARY")


def _load_companion(name: str, missing: str):
    """From $DKV_CUDA_LIBRARY, $DKV_LLAMA_LIBRARY, beside libdkv, or the system."""
    given = os.environ.get(f"{name.upper()}_LIBRARY")
    if given:
        paths = [given]
    else:
        beside = pathlib.Path(library_path()).resolve().parent  # The two are of one version.
        found = [beside / each for each in (f"lib{name}.so.1", f"lib{name}.so")]
        paths = [str(path) for path in found if path.exists()] + [f"lib{name}.so.1"]
    library()  # Which libdkv it uses is decided first.
    return _load(paths, name, missing)


@functools.cache
def _cuda_library() -> tuple:
    return _load_companion("dkv_cuda", "no libdkv_cuda ({}); build dkv where a CUDA toolkit is, or set DKV_CUDA_LIBRARY")


@functools.cache
def _llama_library() -> tuple:
    return _load_companion("dkv_llama", "no libdkv_llama ({}); make build, or set DKV_LLAMA_LIBRARY")


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


def llama_library():
    """libdkv_llama, loaded at the first use. Raises DkvError (NOT_FOUND), naming what was tried."""
    return _llama_library()[0]


def last_error() -> str:
    return ffi.string(library().dkv_last_error()).decode(errors="replace")


def call(name: str, *arguments) -> None:
    """Calls a function that returns a dkv_status. Raises DkvError for any but DKV_OK."""
    companion = _companion_of(name)
    loaded = {"": library, "dkv_cuda": cuda_library, "dkv_llama": llama_library}[companion]()
    status = getattr(loaded, name)(*arguments)
    if status == Status.OK:
        return
    if companion == "dkv_llama":
        raise DkvError(Status(status), ffi.string(loaded.dkv_llama_last_error()).decode(errors="replace"))
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
