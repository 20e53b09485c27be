"""The worker's line to dkvd, on a thread of its own: the engine's thread hands over and looks, and never waits."""

from __future__ import annotations

import contextlib
import queue
import threading

import dkv

from .prompt import Prompt, Shape, State

WAIT_S = 0.002  # Between two looks at sessions whose plan is awaited.
TIMEOUT_S = 10.0  # Of one request. This thread may wait.
WINDOW = 32  # Queries that are copied before a sidecar has said how many it wants: dkvd's default.
ALL = 1 << 31  # A policy that scores with every query (h2o).


class Sidecar:
    """`windows` is read by the engine's thread: how many queries a prompt's policy scores with, by its wish."""

    def __init__(self, shape: Shape, block: int, ready_options, profile: dkv.Profile | None, **options):
        """block: tokens of a block of the KV cache. profile: the model's. options: of dkv.Engine."""
        self._shape, self._block, self._ready_options, self._options = shape, block, ready_options, options
        self._profile = profile
        self._windows: dict[tuple, int] = {}
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._waiting: list[Prompt] = []
        self._engine: dkv.Engine | None = None
        self._refused: dkv.DkvError | None = None
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="dkv-sidecar", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- the engine's thread

    def queries(self, policy: tuple) -> int:
        """How many of a prompt's last queries to copy."""
        return self._windows.get(policy, self._windows.get((), WINDOW))

    def begin(self, prompt: Prompt) -> None:
        self._jobs.put((self._open, prompt))

    def layer_ready(self, prompt: Prompt, layer: int, **ready) -> None:
        self._jobs.put((self._report, prompt, layer, ready, self._ready_options()))

    def end(self, prompt: Prompt, reason: str | None = None, bytes_pool: int = 0) -> None:
        """`reason`: why the plan was not carried out; None: it was, and blocks of `bytes_pool` bytes are not read now."""
        self._jobs.put((self._close, prompt, reason, bytes_pool))

    def close(self) -> None:
        self._jobs.put((self._stop,))
        self._thread.join(timeout=5)

    @property
    def attached(self) -> bool:
        return self._engine is not None and self._engine.state.attached

    # ---------------------------------------------------------------- the sidecar's thread

    def _run(self) -> None:
        try:
            self._engine = dkv.Engine(self._shape.geometry(), timeout_s=TIMEOUT_S, **self._options)
        except dkv.DkvError as error:
            self._refused = error  # Each prompt is told so.
        while not self._ends:
            with contextlib.suppress(queue.Empty):
                job, *arguments = self._jobs.get(timeout=WAIT_S if self._waiting else None)
                self._guarded(arguments[0] if arguments else None, job, *arguments)
            for prompt in list(self._waiting):
                self._guarded(prompt, self._look, prompt)
        if self._engine is not None:
            self._engine.close()

    def _guarded(self, prompt: Prompt | None, job, *arguments) -> None:
        """A prompt whose dealings fail, in whatever way, stays whole."""
        try:
            job(*arguments)
        except Exception as error:
            if prompt is not None:
                self._fail(prompt, error)

    def _open(self, prompt: Prompt) -> None:
        if prompt.abandoned:
            return
        if self._engine is None:
            raise self._refused
        wish = dict(prompt.choice.policy)
        if self._profile is not None and wish.get("name") in (None, "auto", "reuse"):
            wish["profile"] = self._profile
        policy = dkv.Policy(**wish) if wish else None  # None: the sidecar's own, whole.
        session = self._engine.open_session(
            prompt.tokens,
            policy=policy,
            progressive=False,
            row_multiple=self._block,
            row_offset=prompt.tokens % self._block,
        )
        plan, prompt.session_id = session.plan, session.id
        if not plan.compress:
            session.close()
            prompt.leave_whole(f"{plan.policy} keeps all of it")
            return
        self._windows[prompt.choice.policy] = ALL if plan.window >= prompt.tokens else plan.window
        if plan.window > prompt.query_rows:
            detail = f"{plan.policy} scores with {plan.window} queries, and {prompt.query_rows} were copied"
            session.close(detail)
            prompt.leave_whole("its policy needs more queries than were copied", detail + "; the next prompt has them")
            return
        prompt.session = session

    def _report(self, prompt: Prompt, layer: int, ready: dict, options: dict) -> None:
        if prompt.abandoned or prompt.session is None:
            return
        rows = prompt.rows.ready(layer, prompt.blocks)
        queries = prompt.query_window(layer, prompt.session.plan.window) if "scores" not in ready else None
        prompt.session.layer_ready(layer, queries=queries, **rows, **ready, **options)
        if layer == self._shape.layers - 1:
            self._waiting.append(prompt)

    def _look(self, prompt: Prompt) -> None:
        while True:
            event = prompt.session.poll(0)
            if event.kind == dkv.EventKind.NONE:
                return
            if event.kind == dkv.EventKind.FAILED:
                raise prompt.session.failure or RuntimeError("the session was abandoned")
            if event.kind == dkv.EventKind.COMMITTED:
                self._waiting.remove(prompt)
                prompt.kept = [prompt.session.layer(layer).positions for layer in range(self._shape.layers)]
                prompt.state = State.PLANNED
                return

    def _close(self, prompt: Prompt, reason: str | None, bytes_pool: int) -> None:
        if prompt in self._waiting:
            self._waiting.remove(prompt)
        session, prompt.session = prompt.session, None
        if session is not None:
            if reason is None:
                with contextlib.suppress(dkv.DkvError):
                    # Blocks go back to vLLM's pool, and none to the operating system.
                    session.adopted(0, 0, 0, bytes_pool)
            session.close(reason)
        prompt.rows = prompt.queries = None  # Here, and not on the engine's thread: the sidecar is told.

    def _fail(self, prompt: Prompt, error: Exception) -> None:
        if prompt in self._waiting:
            self._waiting.remove(prompt)
        session, prompt.session = prompt.session, None
        if session is not None:
            error = session.failure or error
            session.close(str(error))
        if prompt.state == State.PREFILL:
            prompt.leave_whole(error.name if isinstance(error, dkv.DkvError) else type(error).__name__, str(error))

    def _stop(self) -> None:
        self._ends = True
