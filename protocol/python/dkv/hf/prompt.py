"""One prompt's dealings with the sidecar, from the first layer of its prefill to the adopted rows."""

from __future__ import annotations

import logging
import os
import time

import torch

import dkv

from .attention import Prefix
from .layer import DkvLayer
from .place import give_back
from .report import Report, process_pss
from .storage import QueryWindow, Storage, tensor_over

log = logging.getLogger("dkv.hf")


class Prompt:
    """Never raises what the sidecar did wrong: after a failure it only keeps out of the way.

    `report.failure` says why. Errors of the wish itself (an unknown policy, a capacity below the
    window) are raised by open() when `strict`.
    """

    def __init__(self, layers: list[DkvLayer], storage: Storage, tokens: int, report: Report, timeout_s: float):
        self.layers, self.storage, self.tokens, self.report = layers, storage, tokens, report
        self._timeout_s = timeout_s
        self._session: dkv.Session | None = None
        self._queries: QueryWindow | None = None
        self._released: set[int] = set()
        self._arenas: dict[dkv.LayerForm, dkv.Arena] = {}  # What the session writes to.
        self._silent = False  # The session is lost; finish() will say why.
        self._source_returned = 0
        self._process = os.getpid()

    @property
    def active(self) -> bool:
        return self._session is not None

    def open(self, engine: dkv.Engine, policy: dkv.Policy | None, progressive: bool, q_heads: int, strict: bool) -> None:
        with self.report.timed():
            try:
                session = engine.open_session(self.tokens, policy=policy, progressive=progressive)
            except dkv.DkvError as error:
                if strict and error.status in (dkv.Status.INVALID_ARGUMENT, dkv.Status.NOT_FOUND):
                    raise
                self._note_failure(error)
                return
            plan = session.plan
            self.report.session = session.id
            self.report.policy, self.report.capacity = plan.policy, plan.capacity
            self.report.window = plan.window
            if not plan.compress:
                self.report.kept_whole = f"{plan.policy} keeps all of {self.tokens} tokens"
                session.close()
                return
            try:
                self._queries = QueryWindow(
                    len(self.layers),
                    q_heads,
                    self.storage.head_dim,
                    plan.window,
                    self.tokens,
                    self.storage.dtype,
                    self.storage.place,
                )
            except dkv.DkvError as error:
                session.close(str(error))
                self._note_failure(error)
                return
            self._session = session
            for form in (dkv.LayerForm.STAGED, dkv.LayerForm.PACKED):
                try:  # Taken now already: so its blocks can be counted while prefill runs.
                    self._arenas[form] = session.take_arena(form)
                except dkv.DkvError:
                    pass  # A policy that stages nothing has no staging arena.

    def push_queries(self, ordinal: int, query: torch.Tensor) -> None:
        if self._session is not None:
            with self.report.timed():
                self._queries.push(ordinal, query)

    def layer_done(
        self, ordinal: int, scaling: float | None, softcap: float | None, sinks: torch.Tensor | None = None
    ) -> None:
        """The layer has all of the prompt's rows. Does not wait."""
        if self._session is None or self._silent:
            return
        with self.report.timed():
            keys, values = self.storage.rows(ordinal, self.tokens)
            try:
                self._session.layer_ready(
                    ordinal,
                    keys,
                    values,
                    queries=self._queries.rows(ordinal),
                    scale=scaling or 0.0,
                    softcap=softcap or 0.0,
                    **({} if sinks is None else {"sink_logits": sinks.detach().float().tolist()}),
                    **self.storage.place.ready_options(),
                )
                self._take_events()
            except dkv.DkvError as error:
                self._silent = True
                if error.status != dkv.Status.BAD_STATE:
                    self._note_failure(error)
            self._note_peak()

    def end(self) -> bool:
        """Waits for the packed rows, hands them to the layers and gives the rest back.

        Returns whether a layer still lives in the storage.
        """
        session, self._session = self._session, None
        if session is None:
            return True
        with self.report.timed():
            self.report.pss_before = process_pss()
            begin = time.perf_counter()
            try:
                result = session.finish(self._timeout_s)
                self._note_result(result)
            except dkv.DkvError as error:
                self._note_failure(error)
            self.report.waiting_seconds += time.perf_counter() - begin
            whole = self._adopt(session)
            session.close(self.report.failure)
            self.report.pss_after = process_pss()
        return whole

    def abandon(self, reason: str) -> None:
        """Gives the session up while prefill is running; what was released already is adopted."""
        session, self._session = self._session, None
        if session is None or self._process != os.getpid():
            return  # A forked child's copy: session and rows are the parent's, which goes on with them.
        with self.report.timed():
            self.report.failure = self.report.failure or reason
            self._adopt(session)
            session.close(reason)

    # ---------------------------------------------------------------- the end of prefill

    def _adopt(self, session: dkv.Session) -> bool:
        self._note_peak()
        views = {}
        for layer in self.layers:
            # A staged layer that was not released has better rows in the storage.
            if self.report.failure is not None and layer.ordinal not in self._released:
                continue
            view = session.layer(layer.ordinal)
            if view.form != dkv.LayerForm.FULL:
                views[layer.ordinal] = view
        for layer in self.layers:
            view = views.get(layer.ordinal)
            if view is None:
                continue
            layer.mass_kept = view.mass_kept if view.mass_kept is not None and view.mass_kept >= 0 else None
            layer.positions = view.positions
            layer.adopt(self._prefix(self._arenas[view.form], view))
            if layer.ordinal not in self._released:
                self._release(layer.ordinal)
        self._queries.discard()
        used = {view.form for view in views.values()}
        for form, arena in self._arenas.items():
            if form not in used:
                give_back(arena)
        kept_bytes = sum(self._arenas[form].allocated_bytes for form in used)
        self.report.final_bytes = kept_bytes + self.storage.allocated_bytes()
        self.report.bytes_returned = max(0, self._source_returned - kept_bytes)
        if self.report.failure is None:
            self.report.compressed = True
            done = "dkv: %sthe prompt of %d tokens is compressed by %s"
            log.info(done, self._whose(), self.tokens, self.report.policy, extra=self._extra())
            try:
                session.adopted(self.report.bytes_returned, self.report.peak_bytes, self.report.final_bytes)
            except dkv.DkvError as error:
                untold = "dkv: %sthe sidecar was not told what came back: %s"
                log.info(untold, self._whose(), error, extra=self._extra())
        return len(views) < len(self.layers)

    def _prefix(self, arena: dkv.Arena, view) -> Prefix:
        """Tensors over the arena's rows: one strided view when the heads are alike, else one per head."""
        dim, dtype = self.storage.head_dim, self.storage.dtype
        rows = tensor_over(arena, dtype)
        keys_begin = (view.keys - arena.base) // dtype.itemsize
        values_begin = (view.values - arena.base) // dtype.itemsize
        heads = [offset // dtype.itemsize for offset in view.head_offset]
        lengths = list(view.lengths)
        stride = heads[1] - heads[0] if len(heads) > 1 else lengths[0] * dim
        alike = len(set(lengths)) == 1 and all(begin == index * stride for index, begin in enumerate(heads))
        if alike:
            shape, strides = (len(heads), lengths[0], dim), (stride, dim, 1)
            return Prefix(
                lengths, rows.as_strided(shape, strides, keys_begin), rows.as_strided(shape, strides, values_begin)
            )

        def per_head(begin: int) -> list[torch.Tensor]:
            return [
                rows.as_strided((length, dim), (dim, 1), begin + head) for head, length in zip(heads, lengths)
            ]

        return Prefix(lengths, per_head(keys_begin), per_head(values_begin))

    # ---------------------------------------------------------------- bookkeeping

    def _whose(self) -> str:
        """Begins a line of the log with the id that the sidecar's log and `dkv sessions` show."""
        return f"session {self.report.session}: " if self.report.session else ""

    def _extra(self) -> dict:
        """For formatters that write JSON."""
        return {"dkv_session": self.report.session}

    def _take_events(self) -> None:
        while True:
            event = self._session.poll(0)
            if event.kind == dkv.EventKind.NONE:
                return
            if event.kind == dkv.EventKind.RELEASE:
                self._release(event.layer)
            elif event.kind == dkv.EventKind.FAILED:
                self._silent = True

    def _release(self, ordinal: int) -> None:
        if ordinal in self._released:
            return
        self._note_peak()
        self._released.add(ordinal)
        self._source_returned += self.storage.release(ordinal)
        self._queries.release(ordinal)

    def _note_peak(self) -> None:
        held = self.storage.allocated_bytes() + self._queries.allocated_bytes()
        held += sum(arena.allocated_bytes for arena in self._arenas.values())
        self.report.peak_bytes = max(self.report.peak_bytes, held)

    def _note_result(self, result) -> None:
        self.report.bytes_block_table = result.bytes_block_table
        self.report.sidecar_seconds = result.busy_ns * 1e-9

    def _note_failure(self, error: dkv.DkvError) -> None:
        if self.report.failure is None:
            self.report.failure = f"{error.status.name.lower()}: {error}"
            if error.status in (dkv.Status.INVALID_ARGUMENT, dkv.Status.NOT_FOUND):
                whole = "dkv: %sthe prompt of %d tokens is kept whole: %s"
                log.error(whole, self._whose(), self.tokens, error, extra=self._extra())
