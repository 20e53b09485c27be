"""An engine's line to its sidecar."""

from __future__ import annotations

from . import _abi, checks, cuda
from ._abi import NULL, ffi
from .session import Session
from .words import Dtype, EngineState, Geometry, Policy


class Engine:
    """Attaches to the sidecar at `endpoint`, and attaches again when that was restarted.

    geometry    of the model's compressible layers
    endpoint    None: DKV_ENDPOINT, else this user's default
    engine      for people: "transformers 5.23.0"; so is `model`
    device      "cpu", or a GPU (its UUID, "cuda", a torch.device): then rows are in dkv.cuda.DeviceArenas
    group       ranks of one model share it; 0: alone
    timeout_s   deadline of one request

    Needs no sidecar: without one, open_session raises UNAVAILABLE until there is one. May be shared
    by threads. In a child after fork() its methods raise BAD_STATE: the child opens
    its own.

    Raises DkvError: INVALID_ARGUMENT for geometry or endpoint, UNSUPPORTED for a dtype; for a GPU NOT_FOUND
    or UNAVAILABLE.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        endpoint: str | None = None,
        engine: str = "",
        model: str = "",
        device: object = "cpu",
        group: int = 0,
        timeout_s: float = 2.0,
    ):
        self._handle = NULL
        checks.instance("geometry", geometry, Geometry)
        if endpoint is not None:
            checks.text("endpoint", endpoint)
        group = checks.count("group", group, most=(1 << 64) - 1)
        timeout_s = checks.seconds("timeout_s", timeout_s)
        self.device = "cpu" if str(device) == "cpu" else cuda.uuid_of(device)
        options = _abi.new(
            "dkv_engine_options",
            endpoint=_abi.text(endpoint),
            engine=_abi.text(engine),
            model=_abi.text(model),
            device=_abi.text(self.device),
            group=group,
            geometry={**vars(geometry), "dtype": int(Dtype.of(geometry.dtype))},
            timeout_ms=max(1, _abi.milliseconds(timeout_s)),
        )
        handle = _abi.handle("dkv_engine")
        _abi.call("dkv_engine_open" if self.device == "cpu" else "dkv_cuda_engine_open", options, handle)
        self._handle = handle[0]
        self.geometry = geometry

    def wait_attached(self, timeout_s: float) -> None:
        """Raises DkvError: UNAVAILABLE, DEADLINE_EXCEEDED, VERSION_MISMATCH."""
        _abi.call("dkv_engine_wait_attached", self._handle, _abi.milliseconds(timeout_s))

    @property
    def state(self) -> EngineState:
        state = _abi.new("dkv_engine_state")
        _abi.call("dkv_engine_get_state", self._handle, state)
        return EngineState(
            attached=bool(state.attached),
            instance=state.instance,
            boot_id=state.boot_id,
            sessions_opened=state.sessions_opened,
            sessions_failed=state.sessions_failed,
            last_error=ffi.string(state.last_error).decode(errors="replace"),
        )

    def open_session(
        self,
        prompt_tokens: int,
        policy: Policy | None = None,
        progressive: bool = True,
        row_multiple: int = 0,
        row_offset: int = 0,
        uniform: bool = False,
        rope_interleaved: bool = False,
    ) -> Session:
        """Opens a session for one prompt of `prompt_tokens` tokens, all chunks together.

        row_multiple, row_offset   the rows that each KV head keeps are rounded up with its next best ones to
                                   row_offset (mod row_multiple), for a cache of whole blocks; 0: not rounded
        uniform                    every layer and KV head keeps the policy's capacity, each its own best rows
        rope_interleaved           dims (2i, 2i + 1) of the keys turn together: a profile's surrogate is put in that
                                   order; False: it is in the order of the keys

        Raises DkvError, and then the engine goes on with its full cache: UNAVAILABLE, VERSION_MISMATCH;
        DEADLINE_EXCEEDED, without waiting while a sidecar that did not answer is being asked again in the
        background; INVALID_ARGUMENT or NOT_FOUND for the policy.
        """
        rounding = (row_multiple, row_offset)
        return Session(self, prompt_tokens, policy, progressive, *rounding, uniform, rope_interleaved)

    def close(self) -> None:
        """Says goodbye. Again is allowed."""
        handle, self._handle = self._handle, NULL
        if handle:
            _abi.library().dkv_engine_close(handle)

    def __del__(self):
        self.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()
