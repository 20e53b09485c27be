"""One prompt's compression."""

from __future__ import annotations

import ctypes
import typing

from . import _abi, _cuda_abi, checks, cuda
from .arena import Arena, Rows
from .words import DkvError, Dtype, Event, EventKind, LayerForm, LayerView, Plan, Policy, Profile, Result, Status


class Session:
    """Made by Engine.open_session. Belongs to one thread at a time."""

    def __init__(self, engine, prompt_tokens: int, policy: Policy | None, progressive: bool):
        self._handle: ctypes.c_void_p | None = None
        prompt_tokens = checks.count("prompt_tokens", prompt_tokens)
        if policy is not None:
            checks.instance("policy", policy, Policy)
        options = _abi.SessionOptions(prompt_tokens=prompt_tokens, progressive=int(progressive))
        wish = _policy(policy) if policy is not None else None
        if wish is not None:
            options.policy = ctypes.pointer(wish)
        plan = _abi.SessionPlan()
        handle = ctypes.c_void_p()
        _abi.call(
            "dkv_session_open", engine._handle, ctypes.byref(options), ctypes.byref(handle), ctypes.byref(plan)
        )
        self._handle = handle
        self._engine = engine  # Not to be collected before.
        self._kv_heads = engine.geometry.kv_heads
        self.plan = Plan(bool(plan.compress), plan.window, plan.policy.decode(), plan.capacity)

    def layer_ready(
        self,
        layer: int,
        keys: Rows,
        values: Rows,
        queries: Rows | None = None,
        scores: Rows | None = None,
        scale: float = 0.0,
        softcap: float = 0.0,
        stream: int | None = None,
        sink_logits: typing.Iterable[float] | None = None,
    ) -> None:
        """Reports a layer, in order from 0. Does not wait.

        keys, values   [kv_heads, prompt_tokens, head_dim]
        queries        [q_heads, plan.window, head_dim], after RoPE
        scores         instead of queries: [q_heads or kv_heads, prompt_tokens, 1] f32
        scale          of the logits; 0: 1/sqrt(head_dim)
        stream         on a GPU: a cudaStream_t whose queued work writes the rows (0: the default stream);
                       None: they are written
        sink_logits    learned attention sinks, one finite number per query head (a sequence, or a 1-d array or
                       tensor): each softmax of the head has it beside the final logits; None: none

        Raises DkvError: BAD_STATE out of order or after the session was abandoned,
        INVALID_ARGUMENT for shapes or rows outside their arena.
        """
        ready = _abi.LayerReady(layer=layer, keys=_rows(keys), values=_rows(values), scale=scale, softcap=softcap)
        if queries is not None:
            ready.queries = ctypes.pointer(_rows(queries))
        if scores is not None:
            ready.scores = ctypes.pointer(_rows(scores))
        if sink_logits is not None:
            ready.sink_logits = _sinks(layer, sink_logits, self._engine.geometry.q_heads)
        if stream is None:
            _abi.call("dkv_session_layer_ready", self._handle, ctypes.byref(ready))
        else:
            _cuda_abi.call("dkv_cuda_layer_ready", self._handle, ctypes.byref(ready), stream)

    def poll(self, timeout_s: float = 0.0) -> Event:
        """The next thing that happened; EventKind.NONE when nothing did in time."""
        event = _abi.Event()
        _abi.call("dkv_session_poll", self._handle, ctypes.byref(event), _abi.milliseconds(timeout_s))
        return Event(EventKind(event.kind), event.layer)

    def finish(self, timeout_s: float | None = None) -> Result:
        """Waits for the destination; None: the engine's timeout. Raises DkvError with the reason when
        the session was abandoned; its layers can be looked at all the same."""
        result = _abi.Result()
        timeout_ms = 0 if timeout_s is None else max(1, _abi.milliseconds(timeout_s))
        _abi.call("dkv_session_finish", self._handle, timeout_ms, ctypes.byref(result))
        return Result(
            committed=bool(result.committed),
            bytes_full=result.bytes_full,
            bytes_kept=result.bytes_kept,
            bytes_block_table=result.bytes_block_table,
            busy_ns=result.busy_ns,
        )

    def layer(self, layer: int) -> LayerView:
        """Where a layer's rows are now. Raises DkvError (INVALID_ARGUMENT) for no such layer."""
        view = _abi.LayerView()
        _abi.call("dkv_session_layer", self._handle, layer, ctypes.byref(view))
        form = LayerForm(view.form)
        if form == LayerForm.FULL:
            return LayerView(form)
        lengths = view.lengths[: self._kv_heads]
        positions = None
        if form == LayerForm.PACKED:
            ends = [sum(lengths[: head + 1]) for head in range(self._kv_heads)]
            flat = view.positions[: ends[-1]]
            positions = [flat[end - length : end] for length, end in zip(lengths, ends)]
        return LayerView(
            form=form,
            keys=view.keys,
            values=view.values,
            lengths=lengths,
            head_offset=view.head_offset[: self._kv_heads],
            positions=positions,
            mass_kept=view.mass_kept if view.mass_kept >= 0 else None,
        )

    def take_arena(self, form: LayerForm) -> Arena:
        """The arena of the staged or the packed rows, for good: it outlives the session.

        Raises DkvError (BAD_STATE): there is none, or it was taken before.
        """
        handle = ctypes.c_void_p()
        _abi.call("dkv_session_take_arena", self._handle, form, ctypes.byref(handle))
        device = self._engine.device
        return Arena._of(handle) if device == "cpu" else cuda.DeviceArena._of(handle, device)

    def adopted(self, bytes_returned: int, bytes_peak: int, bytes_final: int) -> None:
        """Tells the sidecar what the system gave back, as measured here."""
        _abi.call("dkv_session_adopted", self._handle, bytes_returned, bytes_peak, bytes_final)

    @property
    def failure(self) -> DkvError | None:
        """Why the session was abandoned; None when it was not."""
        status = _abi.library().dkv_session_failure(self._handle)
        return None if status == Status.OK else DkvError(Status(status), _abi.last_error())

    def close(self, reason: str | None = None) -> None:
        """Ends the session, with a reason when it was given up. Does not wait; again is allowed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _abi.library().dkv_session_close(handle, _abi.text(reason))

    def __del__(self):
        self.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(None if error is None else str(error))


def _policy(policy: Policy) -> _abi.Policy:
    def count(wish: int | None) -> int:
        return _abi.DEFAULT if wish is None else wish

    def ratio(wish: float | None) -> float:
        return -1.0 if wish is None else wish  # To the library a negative number means the default.

    return _abi.Policy(
        name=_abi.text(policy.name),
        capacity=count(policy.capacity),
        window=count(policy.window),
        kernel=count(policy.kernel),
        pool=_abi.text(policy.pool),
        reduce=_abi.text(policy.reduce),
        r_max=ratio(policy.r_max),
        r_min=ratio(policy.r_min),
        update_interval=count(policy.update_interval),
        sinks=count(policy.sinks),
        beta=ratio(policy.beta),
        granularity=_abi.text(policy.granularity),
        score_norm=_abi.text(policy.score_norm),
        query_norm=-1 if policy.query_norm is None else int(policy.query_norm),
        ratio=ratio(policy.ratio),
        bytes=policy.bytes or 0,
        keep_mass=ratio(policy.keep_mass),
        preset=_abi.text(policy.preset),
        profile=_profile(policy.profile),
    )


def _sinks(layer: int, given, q_heads: int):
    values = given.tolist() if hasattr(given, "tolist") else given
    try:
        numbers = [float(each) for each in values]
    except (TypeError, ValueError):
        wrong = f"layer {layer}: sink_logits is not a sequence of numbers, one per query head"
        raise DkvError(Status.INVALID_ARGUMENT, wrong) from None
    if len(numbers) != q_heads:
        wrong = f"layer {layer}: sink_logits has {len(numbers)} values, not {q_heads}: one per query head"
        raise DkvError(Status.INVALID_ARGUMENT, wrong)
    return (ctypes.c_float * q_heads)(*numbers)


def _profile(profile: Profile | None):
    if profile is None:
        return None
    flat = [weight for row in profile.weights for weight in row]
    return ctypes.pointer(
        _abi.Profile(
            name=_abi.text(profile.name),
            layers=len(profile.weights),
            heads=len(profile.weights[0]),
            weights=(ctypes.c_double * len(flat))(*flat),
            alpha=profile.alpha,
            floor=profile.floor,
            kernel=profile.kernel or 0,
        )
    )


def _rows(rows: Rows) -> _abi.Rows:
    return _abi.Rows(
        arena=rows.arena.handle,
        offset=rows.offset,
        dtype=Dtype.of(rows.dtype),
        heads=rows.heads,
        tokens=rows.tokens,
        head_dim=rows.head_dim,
        head_stride=rows.head_stride,
        token_stride=rows.token_stride,
        dim_stride=rows.dim_stride,
    )
