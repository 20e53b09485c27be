"""One llama.cpp context that dkv compresses."""

from __future__ import annotations

import dataclasses
import logging

from .. import _abi, checks
from .._abi import ffi
from ..errors import DkvError, Status
from ..session import _policy
from ..words import Policy
from .pointers import address, set_callback

_log = logging.getLogger("dkv.llama")


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a prompt. Bytes are of the sequence's state."""

    compressed: bool
    tokens: int
    cells: int  # The policy's capacity, the same in each layer.
    layers: int  # That were compressed.
    layers_left_alone: int  # A sliding window bounds them already.
    bytes_before: int
    bytes_after: int
    prompts: int
    prompts_compressed: int
    policy: str
    reason: str  # Why it was not compressed, or "".
    bytes_returned: int  # Of resident pages of the same context, to the system.
    session: str | None  # As `dkv sessions` and dkvd's log name it; None: none was opened.


class Watch:
    """Compresses the prompts of one llama.cpp context, one at a time.

    params      llama_context_params, of cffi's (llama-cpp-py-sync) or ctypes' (llama-cpp-python); their cb_eval
                is set, and called first where it was set before
    library     the path of the libllama that the process has loaded; None: the process's symbols
    endpoint    None: DKV_ENDPOINT, else this user's default
    model       for people
    window_max  query rows that are remembered
    timeout_s   of waiting for a sidecar, and for its plan

    Close it after the context was freed. Raises DkvError: NOT_FOUND, UNSUPPORTED for a version of llama.cpp.
    """

    def __init__(
        self,
        params: object,
        *,
        library: str | None = None,
        endpoint: str | None = None,
        model: str = "",
        window_max: int = 64,
        timeout_s: float = 10.0,
    ):
        self._handle = ffi.NULL
        options = _abi.new(
            "dkv_llama_options",
            library=_abi.text(library),
            endpoint=_abi.text(endpoint),
            model=_abi.text(model),
            window_max=checks.count("window_max", window_max, 1, 1024),
            timeout_ms=max(1, _abi.milliseconds(checks.seconds("timeout_s", timeout_s))),
            eval=ffi.cast("dkv_llama_callback", address(params.cb_eval)),
            eval_data=ffi.cast("void *", address(params.cb_eval_user_data)),
        )
        handle = _abi.handle("dkv_llama")
        _abi.call("dkv_llama_open", options, handle)
        self._handle = handle[0]
        callback = ffi.addressof(_abi.llama_library(), "dkv_llama_eval")
        set_callback(params, address(callback), address(self._handle))

    def attach(self, context: object) -> None:
        """Raises DkvError (UNSUPPORTED), naming what is not supported."""
        _abi.call("dkv_llama_attach", self._handle, _context(context))

    def begin(self, sequence: int = 0) -> None:
        """Before a prompt's first token is decoded, or one that goes on with whole cells. Until compress(), decode no
        other sequence.

        Raises DkvError: INVALID_ARGUMENT, the context has no such sequence.
        """
        _abi.call("dkv_llama_begin", self._handle, sequence)

    def compress(self, policy: Policy | None = None, target: object = None) -> Report:
        """After the prompt's prefill. `target`: a context of the same model, the sequence empty, takes the kept cells.

        Raises nothing where the context is as it was: the report has the reason, and it is logged.
        Raises DkvError (INTERNAL): llama.cpp took neither the kept cells nor its own back.
        """
        wish = ffi.NULL if policy is None else _policy(policy)
        report = _abi.new("dkv_llama_report")
        failure = None
        try:
            _abi.call("dkv_llama_compress", self._handle, wish, _context(target), report)
        except DkvError as error:
            if error.status == Status.INTERNAL:
                raise
            failure = error
        done = self.report
        whose, extra = f"session {done.session}: " if done.session else "", {"dkv_session": done.session}
        if failure is not None:
            _log.warning("dkv: %sthe prompt's cache is left whole: %s", whose, failure, extra=extra)
        elif done.compressed:
            said = "dkv: %sthe prompt of %d tokens is compressed by %s"
            _log.info(said, whose, done.tokens, done.policy, extra=extra)
        return done

    def adopted(self, bytes_returned: int, bytes_peak: int, bytes_final: int) -> None:
        """Tells the sidecar what the system gave back, as it was measured."""
        _abi.call("dkv_llama_adopted", self._handle, bytes_returned, bytes_peak, bytes_final)

    def positions(self, layer: int, head: int) -> list[int]:
        """Of the tokens that the last prompt kept in a layer of the model and a KV head. Raises DkvError (NOT_FOUND)."""
        found = ffi.new("int32_t[]", max(1, self.report.cells))
        _abi.call("dkv_llama_positions", self._handle, layer, head, found)
        return list(found)

    @property
    def report(self) -> Report:
        """Of the last prompt."""
        found = _abi.new("dkv_llama_report")
        _abi.call("dkv_llama_get_report", self._handle, found)
        text = {name: ffi.string(getattr(found, name)).decode(errors="replace") for name in ("policy", "reason")}
        numbers = {
            field.name: getattr(found, field.name) for field in dataclasses.fields(Report) if field.name not in text
        }
        session = f"0x{found.session:016x}" if found.session else None
        return Report(**{**numbers, **text, "compressed": bool(found.compressed), "session": session})

    def close(self) -> None:
        if self._handle != ffi.NULL:
            _abi.llama_library().dkv_llama_close(self._handle)
            self._handle = ffi.NULL


def _context(context: object):
    return ffi.cast("struct llama_context *", address(context))

