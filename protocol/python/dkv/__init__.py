"""dkv for engines written in Python: attach to a sidecar that compresses KV caches.

    engine = dkv.Engine(dkv.Geometry(layers=30, q_heads=9, kv_heads=3, head_dim=64, dtype="f32"))
    with engine.open_session(prompt_tokens=4096) as session:
        ...  # per layer: session.layer_ready(...), then session.poll() until EventKind.NONE
        session.finish()
        ...  # per layer: session.layer(l) says where its rows are now

Whatever raises a DkvError, the engine can go on with its own rows. dkv.hf does all of it for Hugging
Face transformers. Nothing here needs torch.
"""

from . import _abi, cuda
from .arena import Arena, Blocks, Rows
from .engine import Engine
from .session import Session
from .words import (
    ArenaKind,
    DkvError,
    Dtype,
    EngineState,
    Event,
    EventKind,
    Geometry,
    LayerForm,
    LayerView,
    Plan,
    Policy,
    Profile,
    Result,
    Status,
    Surrogate,
)


def library_version() -> str:
    """Of the libdkv that is loaded. Raises DkvError (NOT_FOUND) when there is none."""
    return _abi.ffi.string(_abi.library().dkv_version()).decode()


def __getattr__(name: str) -> str:
    if name == "__version__":  # Package and library are released together.
        try:
            return library_version()
        except DkvError as missing:
            raise AttributeError(str(missing)) from missing
    raise AttributeError(f"module 'dkv' has no attribute {name!r}")


__all__ = [
    "Arena",
    "ArenaKind",
    "Blocks",
    "DkvError",
    "Dtype",
    "Engine",
    "EngineState",
    "Event",
    "EventKind",
    "Geometry",
    "LayerForm",
    "LayerView",
    "Plan",
    "Policy",
    "Profile",
    "Result",
    "Rows",
    "Session",
    "Status",
    "Surrogate",
    "cuda",
    "library_version",
]
