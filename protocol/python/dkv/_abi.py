"""dkv.h for ctypes: the structs, the prototypes, and where libdkv is."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_uint32, c_uint64, c_void_p

from . import programs
from .errors import DkvError, Status

DEFAULT = 0xFFFFFFFF  # DKV_DEFAULT


class Sized(ctypes.Structure):
    """A struct whose first field is its own size."""

    def __init__(self, **fields):
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **fields)


class Geometry(ctypes.Structure):
    _fields_ = [(name, c_uint32) for name in ("layers", "q_heads", "kv_heads", "head_dim", "dtype")]


class EngineOptions(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("endpoint", c_char_p),
        ("engine", c_char_p),
        ("model", c_char_p),
        ("device", c_char_p),
        ("group", c_uint64),
        ("geometry", Geometry),
        ("timeout_ms", c_uint32),
    ]


class EngineState(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("attached", c_int32),
        ("instance", c_uint64),
        ("boot_id", c_uint64),
        ("sessions_opened", c_uint64),
        ("sessions_failed", c_uint64),
        ("last_error", c_char * 256),
    ]


class Profile(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("name", c_char_p),
        ("layers", c_uint32),
        ("heads", c_uint32),
        ("weights", POINTER(c_double)),
        ("alpha", c_double),
        ("floor", c_double),
        ("kernel", c_uint32),
    ]


class Policy(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("name", c_char_p),
        ("capacity", c_uint32),
        ("window", c_uint32),
        ("kernel", c_uint32),
        ("pool", c_char_p),
        ("reduce", c_char_p),
        ("r_max", c_double),
        ("r_min", c_double),
        ("update_interval", c_uint32),
        ("sinks", c_uint32),
        ("beta", c_double),
        ("granularity", c_char_p),
        ("score_norm", c_char_p),
        ("query_norm", c_int32),
        ("ratio", c_double),
        ("bytes", c_uint64),
        ("keep_mass", c_double),
        ("preset", c_char_p),
        ("profile", POINTER(Profile)),
    ]


class SessionOptions(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("prompt_tokens", c_uint32),
        ("policy", POINTER(Policy)),
        ("progressive", c_int32),
    ]


class SessionPlan(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("compress", c_int32),
        ("window", c_uint32),
        ("policy", c_char * 64),
        ("capacity", c_uint32),
    ]


class Rows(ctypes.Structure):
    _fields_ = [
        ("arena", c_void_p),
        ("offset", c_uint64),
        ("dtype", c_uint32),
        ("heads", c_uint32),
        ("tokens", c_uint32),
        ("head_dim", c_uint32),
        ("head_stride", c_uint64),
        ("token_stride", c_uint64),
        ("dim_stride", c_uint64),
    ]


class LayerReady(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("layer", c_uint32),
        ("keys", Rows),
        ("values", Rows),
        ("queries", POINTER(Rows)),
        ("scores", POINTER(Rows)),
        ("scale", c_float),
        ("softcap", c_float),
        ("sink_logits", POINTER(c_float)),
    ]


class Event(Sized):
    _fields_ = [("struct_bytes", c_uint32), ("kind", c_uint32), ("layer", c_uint32)]


class Result(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("committed", c_int32),
        ("bytes_full", c_uint64),
        ("bytes_kept", c_uint64),
        ("bytes_block_table", c_uint64),
        ("busy_ns", c_uint64),
    ]


class LayerView(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("form", c_uint32),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("lengths", POINTER(c_uint32)),
        ("head_offset", POINTER(c_uint64)),
        ("positions", POINTER(c_int32)),
        ("mass_kept", c_float),
    ]


class SaveRows(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("head_stride", c_uint64),
        ("token_stride", c_uint64),
        ("dim_stride", c_uint64),
        ("head_offset", POINTER(c_uint64)),
    ]


class SaveLayer(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("keys", SaveRows),
        ("values", SaveRows),
        ("queries", SaveRows),
        ("lengths", POINTER(c_uint32)),
        ("positions", POINTER(c_int32)),
        ("sink_logits", POINTER(c_float)),
    ]


class SaveOptions(Sized):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("geometry", Geometry),
        ("model", c_char_p),
        ("prompt_tokens", c_uint32),
        ("tokens", POINTER(c_int32)),
        ("query_rows", c_uint32),
        ("scale", c_float),
        ("softcap", c_float),
        ("rope_theta", c_double),
        ("rope_interleaved", c_int32),
        ("rope_dims", c_uint32),
        ("rope_scaling", c_char_p),
        ("provenance", POINTER(c_char_p)),
    ]


# name: (result, arguments). A status of c_int32 is checked by call().
_PROTOTYPES = {
    "dkv_version": (c_char_p, []),
    "dkv_last_error": (c_char_p, []),
    "dkv_arena_create": (c_int32, [c_uint64, c_uint32, POINTER(c_void_p)]),
    "dkv_arena_base": (c_void_p, [c_void_p]),
    "dkv_arena_bytes": (c_uint64, [c_void_p]),
    "dkv_arena_release": (c_int32, [c_void_p, c_uint64, c_uint64]),
    "dkv_arena_allocated_bytes": (c_uint64, [c_void_p]),
    "dkv_arena_destroy": (None, [c_void_p]),
    "dkv_engine_open": (c_int32, [POINTER(EngineOptions), POINTER(c_void_p)]),
    "dkv_engine_wait_attached": (c_int32, [c_void_p, c_uint32]),
    "dkv_engine_get_state": (c_int32, [c_void_p, POINTER(EngineState)]),
    "dkv_engine_close": (None, [c_void_p]),
    "dkv_session_open": (
        c_int32,
        [c_void_p, POINTER(SessionOptions), POINTER(c_void_p), POINTER(SessionPlan)],
    ),
    "dkv_session_layer_ready": (c_int32, [c_void_p, POINTER(LayerReady)]),
    "dkv_session_poll": (c_int32, [c_void_p, POINTER(Event), c_uint32]),
    "dkv_session_finish": (c_int32, [c_void_p, c_uint32, POINTER(Result)]),
    "dkv_session_layer": (c_int32, [c_void_p, c_uint32, POINTER(LayerView)]),
    "dkv_session_take_arena": (c_int32, [c_void_p, c_uint32, POINTER(c_void_p)]),
    "dkv_session_adopted": (c_int32, [c_void_p, c_uint64, c_uint64, c_uint64]),
    "dkv_session_failure": (c_int32, [c_void_p]),
    "dkv_session_close": (None, [c_void_p, c_char_p]),
    "dkv_save": (c_int32, [c_char_p, POINTER(SaveOptions), POINTER(SaveLayer), POINTER(c_uint64)]),
}


def load(paths: list[str], prototypes: dict, missing: str) -> ctypes.CDLL:
    """The first of these libraries that loads and has every function. Raises DkvError (NOT_FOUND), with
    `missing` around what was tried."""
    tried = []
    for path in paths:
        try:
            loaded = ctypes.CDLL(path)
            for name, (result, arguments) in prototypes.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
            return loaded
        except (OSError, AttributeError) as error:
            tried.append(str(error))
    raise DkvError(Status.NOT_FOUND, missing.format("; ".join(tried)))


@functools.cache
def library() -> ctypes.CDLL:
    """libdkv, loaded at the first use. Raises DkvError (NOT_FOUND), naming what was tried."""
    return load(programs.libraries(), _PROTOTYPES, "no libdkv ({}); make build, or set DKV_LIBRARY")


def last_error() -> str:
    return library().dkv_last_error().decode(errors="replace")


def call(name: str, *arguments) -> None:
    """Calls a function that returns a dkv_status. Raises DkvError for any but DKV_OK."""
    check(getattr(library(), name)(*arguments))


def check(status: int) -> None:
    """Of either library. Raises DkvError for any but DKV_OK."""
    if status != Status.OK:
        raise DkvError(Status(status), last_error())


def text(words: str | None) -> bytes | None:
    return None if words is None else words.encode()


def milliseconds(seconds: float) -> int:
    """Rounded up, and never more than the ABI can say."""
    return max(0, min(int(-(-seconds * 1000 // 1)), 0xFFFFFFFF))
