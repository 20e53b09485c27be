"""One prompt's compression."""

from __future__ import annotations

import typing

from . import _abi, checks, cuda, parameters
from ._abi import NULL, ffi
from .arena import Arena, Blocks, Rows
from .words import (
    DkvError, Dtype, Event, EventKind, LayerForm, LayerView, Plan, Policy, Profile, Result, Status, Surrogate,
)  # fmt: skip


class Session:
    """Made by Engine.open_session. Belongs to one thread at a time."""

    def __init__(
        self,
        engine,
        prompt_tokens: int,
        policy: Policy | None,
        progressive: bool,
        row_multiple: int = 0,
        row_offset: int = 0,
        uniform: bool = False,
        rope_interleaved: bool = False,
    ):
        self._handle = NULL
        prompt_tokens = checks.count("prompt_tokens", prompt_tokens)
        if policy is not None:
            checks.instance("policy", policy, Policy)
        wish = None if policy is None else _policy(policy)
        options = _abi.new(
            "dkv_session_options",
            prompt_tokens=prompt_tokens,
            progressive=int(progressive),
            policy=wish,
            row_multiple=row_multiple,
            row_offset=row_offset,
            uniform=int(uniform),
            rope_interleaved=int(rope_interleaved),
        )
        plan, handle = _abi.new("dkv_session_plan"), _abi.handle("dkv_session")
        _abi.call("dkv_session_open", engine._handle, options, handle, plan)
        self._handle = handle[0]
        self._engine = engine  # Not to be collected before.
        self._kv_heads = engine.geometry.kv_heads
        self.id = f"0x{_abi.library().dkv_session_id(self._handle):016x}"  # As `dkv sessions` and the sidecar's log say.
        self.plan = Plan(bool(plan.compress), plan.window, ffi.string(plan.policy).decode(), plan.capacity)

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
        blocks: Blocks | None = None,
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
        blocks         where the prompt's tokens are; keys and values then are the rows of block 0, with its tokens

        Raises DkvError: BAD_STATE out of order or after the session was abandoned,
        INVALID_ARGUMENT for shapes, or rows or blocks outside their arena.
        """
        ready = _abi.new(
            "dkv_layer_ready",
            layer=layer,
            keys=_rows(keys),
            values=_rows(values),
            queries=None if queries is None else _abi.new("dkv_rows", _rows(queries)),
            scores=None if scores is None else _abi.new("dkv_rows", _rows(scores)),
            scale=scale,
            softcap=softcap,
            sink_logits=None if sink_logits is None else _sinks(layer, sink_logits, self._engine.geometry.q_heads),
            blocks=None if blocks is None else _blocks(blocks),
        )
        if stream is None:
            _abi.call("dkv_session_layer_ready", self._handle, ready)
        else:
            _abi.call("dkv_cuda_layer_ready", self._handle, ready, ffi.cast("void *", stream))

    def poll(self, timeout_s: float = 0.0) -> Event:
        """The next thing that happened; EventKind.NONE when nothing did in time."""
        event = _abi.new("dkv_event")
        _abi.call("dkv_session_poll", self._handle, event, _abi.milliseconds(timeout_s))
        return Event(EventKind(event.kind), event.layer)

    def finish(self, timeout_s: float | None = None) -> Result:
        """Waits for the destination; None: the engine's timeout. Raises DkvError with the reason when
        the session was abandoned; its layers can be looked at all the same."""
        result = _abi.new("dkv_result")
        timeout_ms = 0 if timeout_s is None else max(1, _abi.milliseconds(timeout_s))
        _abi.call("dkv_session_finish", self._handle, timeout_ms, result)
        return Result(
            committed=bool(result.committed),
            bytes_full=result.bytes_full,
            bytes_kept=result.bytes_kept,
            bytes_block_table=result.bytes_block_table,
            busy_ns=result.busy_ns,
        )

    def layer(self, layer: int) -> LayerView:
        """Where a layer's rows are now. Raises DkvError (INVALID_ARGUMENT) for no such layer."""
        view = _abi.new("dkv_layer_view")
        _abi.call("dkv_session_layer", self._handle, layer, view)
        form = LayerForm(view.form)
        if form == LayerForm.FULL:
            return LayerView(form)
        lengths = ffi.unpack(view.lengths, self._kv_heads)
        positions = None
        if form == LayerForm.PACKED:
            ends = [sum(lengths[: head + 1]) for head in range(self._kv_heads)]
            flat = ffi.unpack(view.positions, ends[-1])
            positions = [flat[end - length : end] for length, end in zip(lengths, ends)]
        return LayerView(
            form=form,
            keys=_abi.address(view.keys),
            values=_abi.address(view.values),
            lengths=lengths,
            head_offset=ffi.unpack(view.head_offset, self._kv_heads),
            positions=positions,
            mass_kept=view.mass_kept if view.mass_kept >= 0 else None,
        )

    def take_arena(self, form: LayerForm) -> Arena:
        """The arena of the staged or the packed rows, for good: it outlives the session.

        Raises DkvError (BAD_STATE): there is none, or it was taken before.
        """
        taken = _abi.handle("dkv_arena")
        _abi.call("dkv_session_take_arena", self._handle, form, taken)
        device = self._engine.device
        return Arena._of(taken[0]) if device == "cpu" else cuda.DeviceArena._of(taken[0], device)

    def adopted(self, bytes_returned: int, bytes_peak: int, bytes_final: int, bytes_pool: int = 0) -> None:
        """Tells the sidecar what the system gave back, as measured here, and apart from that the bytes of blocks
        that went back to the engine's own pool."""
        _abi.call("dkv_session_returned_to_pool", self._handle, bytes_pool)
        _abi.call("dkv_session_adopted", self._handle, bytes_returned, bytes_peak, bytes_final)

    @property
    def failure(self) -> DkvError | None:
        """Why the session was abandoned; None when it was not."""
        status = _abi.library().dkv_session_failure(self._handle)
        return None if status == Status.OK else DkvError(Status(status), _abi.last_error())

    def close(self, reason: str | None = None) -> None:
        """Ends the session, with a reason when it was given up. Does not wait; again is allowed."""
        handle, self._handle = self._handle, NULL
        if handle:
            _abi.library().dkv_session_close(handle, _abi.text(reason))

    def __del__(self):
        self.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(None if error is None else str(error))


def _policy(policy: Policy):
    made = _abi.new("dkv_policy")
    _abi.library().dkv_policy_defaults(made, ffi.sizeof("dkv_policy"))
    for name in ("name", *parameters.NAMES):
        value = getattr(policy, name)
        if value is not None:
            setattr(made, name, _abi.hold(made, _abi.text(value)) if isinstance(value, str) else value)
    if policy.profile is not None:
        made.profile = _abi.hold(made, _profile(policy.profile))
    return made


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
    return ffi.new("float[]", numbers)


def _surrogate(surrogate: Surrogate):
    return _abi.new(
        "dkv_surrogate",
        kv_heads=surrogate.kv_heads,
        head_dim=surrogate.head_dim,
        weights=ffi.from_buffer("uint16_t[]", surrogate.weights),
        frequencies=_abi.array("float", surrogate.frequencies),
        pairs=len(surrogate.frequencies),
        interleaved=int(surrogate.interleaved),
    )


def _profile(profile: Profile):
    return _abi.new(
        "dkv_profile",
        name=_abi.text(profile.name),
        layers=len(profile.weights),
        heads=len(profile.weights[0]),
        weights=_abi.array("double", [weight for row in profile.weights for weight in row]),
        alpha=profile.alpha,
        floor=profile.floor,
        kernel=profile.kernel,
        surrogate=None if profile.surrogate is None else _surrogate(profile.surrogate),
    )


def _blocks(blocks: Blocks):
    ids = _abi.array("uint32_t", blocks.ids)
    struct = _abi.new("dkv_blocks", (ids, len(blocks.ids), blocks.stride))
    _abi.hold(struct, ids)
    return struct


def _rows(rows: Rows) -> tuple:
    """What initialises a dkv_rows: its fields in their order."""
    return (
        rows.arena.handle, rows.offset, Dtype.of(rows.dtype), rows.heads, rows.tokens, rows.head_dim,
        rows.head_stride, rows.token_stride, rows.dim_stride,
    )  # fmt: skip
