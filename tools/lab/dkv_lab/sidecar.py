"""The real sidecar as the one who chooses: a prompt's rows are lent to it, and what it keeps is what is scored."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import dkv
from dkv import programs
from dkv.errors import UserError
from dkv.hf.storage import QueryWindow, Storage, tensor_over

from .probe import Prompt, Rankings, Variant

_START_SECONDS = 30.0
_ANSWER_SECONDS = 300.0  # For one prompt; a machine may be busy.


class SidecarError(UserError):
    """There is no sidecar to evaluate with, or it did something else than it was asked for."""


@contextlib.contextmanager
def private_sidecar(threads: int | None = None) -> Iterator[str]:
    """A dkvd of one's own for as long as the block runs; yields its endpoint."""
    try:
        program = programs.find("dkvd")
    except UserError as missing:
        raise SidecarError(f"{missing}, or give --endpoint or --inline") from None
    with tempfile.TemporaryDirectory(prefix="dkv-eval-") as folder:
        endpoint, log = f"ipc://{folder}/dkvd.sock", Path(folder) / "dkvd.log"
        command = [program, "--endpoint", endpoint, *(["--threads", str(threads)] if threads else [])]
        if shutil.which("setpriv"):  # It must not outlive a killed evaluation.
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            yield endpoint
        except dkv.DkvError as error:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
            raise SidecarError(f"the evaluation's dkvd failed: {error} ({last})") from error
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Chooser:
    """An engine that only asks: lends prompts, takes down which positions are kept, and keeps its rows."""

    def __init__(self, endpoint: str | None, model: str = ""):
        self._endpoint, self._model = endpoint, model
        self._engine: dkv.Engine | None = None

    @contextlib.contextmanager
    def lend(self, prompt: Prompt, replayed: Callable[[], list[torch.Tensor]] | None = None) -> Iterator["Loan"]:
        """replayed: makes the scores [Hkv, n] of every compressed layer that the policy scores ranks by."""
        loan = Loan(self._attached(prompt), prompt, replayed)
        try:
            yield loan
        finally:
            loan.take_back()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _attached(self, prompt: Prompt) -> dkv.Engine:
        layer = prompt.layers[prompt.compressed[0]]
        geometry = dkv.Geometry(
            layers=len(prompt.compressed),
            q_heads=layer.queries.shape[0],
            kv_heads=layer.keys.shape[0],
            head_dim=layer.keys.shape[2],
            dtype=layer.keys.dtype,
        )
        if self._engine is None:
            self._engine = dkv.Engine(
                geometry, endpoint=self._endpoint, engine="dkv-lab", model=self._model, timeout_s=_ANSWER_SECONDS
            )
            try:
                self._engine.wait_attached(_START_SECONDS)
            except dkv.DkvError as error:
                raise SidecarError(f"no sidecar to evaluate with: {error}; give another --endpoint, or --inline") from error
        elif self._engine.geometry != geometry:
            raise SidecarError(f"a prompt has {geometry} where the first had {self._engine.geometry}")
        return self._engine


class Loan:
    """One prompt in shared memory. Every policy reads the same rows; none is given back before the end."""

    def __init__(self, engine: dkv.Engine, prompt: Prompt, replayed: Callable[[], list[torch.Tensor]] | None):
        self._engine, self._prompt, self._replayed = engine, prompt, replayed
        layers = [prompt.layers[index] for index in prompt.compressed]
        first = layers[0]
        heads, tokens, dim = first.keys.shape
        self._storage = Storage(len(layers), heads, dim, tokens, first.keys.dtype)
        self._queries: dict[int, QueryWindow] = {}
        for ordinal, layer in enumerate(layers):
            keys, values = self._storage.layer(ordinal)
            keys[0, :, :tokens].copy_(layer.keys)
            values[0, :, :tokens].copy_(layer.values)
        self._sums = _Scores([layer.accumulated for layer in layers]) if first.accumulated is not None else None

    @functools.cached_property
    def _replay(self) -> "_Scores":
        if self._replayed is None:
            raise SidecarError("scores needs a replay of the prompt")
        return _Scores([layer.float() for layer in self._replayed()])

    def take_back(self) -> None:
        self._storage.discard()
        for queries in self._queries.values():
            queries.discard()

    def _last_queries(self, window: int) -> QueryWindow:
        if window not in self._queries:
            layers = [self._prompt.layers[index] for index in self._prompt.compressed]
            heads, _, dim = layers[0].queries.shape
            self._queries[window] = QueryWindow(len(layers), heads, dim, window, window, layers[0].keys.dtype)
            for ordinal, layer in enumerate(layers):
                self._queries[window].push(ordinal, layer.queries[None, :, -window:])
        return self._queries[window]

    def kept(self, wish: dkv.Policy) -> list[list[list[int]]]:
        """The positions kept per layer and KV head, in order."""
        prompt = self._prompt
        with self._engine.open_session(prompt.tokens, wish) as session:
            plan = session.plan
            if not plan.compress:
                raise SidecarError(f"{plan.policy} would keep all of {prompt.tokens} tokens")
            if (plan.policy, plan.capacity) != (wish.name, wish.capacity):
                asked = f"{wish.name} {wish.capacity}"
                raise SidecarError(f"the sidecar's operator set {plan.policy} {plan.capacity} where {asked} was asked for")
            self._report_layers(session, wish)
            session.finish(_ANSWER_SECONDS)
            return [session.layer(ordinal).positions for ordinal in range(len(prompt.compressed))]

    def _report_layers(self, session: dkv.Session, wish: dkv.Policy) -> None:
        if wish.name == "h2o" and self._sums is None:
            raise SidecarError("h2o needs a prefill with its sums over all queries")
        window = session.plan.window
        asks = 0 < window <= self._prompt.window
        given = {"h2o": lambda: self._sums, "scores": lambda: self._replay}.get(wish.name, lambda: None)()
        for ordinal, index in enumerate(self._prompt.compressed):
            layer = self._prompt.layers[index]
            keys, values = self._storage.rows(ordinal, self._prompt.tokens)
            queries = self._last_queries(window).rows(ordinal) if asks and given is None else None
            ranked = None if given is None else given.rows(ordinal)
            session.layer_ready(
                ordinal, keys, values, queries, ranked, scale=layer.scale, softcap=layer.softcap or 0.0, sink_logits=layer.sinks
            )
            while session.poll(0).kind != dkv.EventKind.NONE:  # Rows that may be released are not: others read them.
                pass


class _Scores:
    """[Hkv, n] f32 per layer, for the sidecar to rank by: H2O's sums over all queries, or a replay's."""

    def __init__(self, layers: list[torch.Tensor]):
        heads, self._tokens = layers[0].shape
        self._heads, self._layer_bytes = heads, heads * self._tokens * 4
        self._arena = dkv.Arena(len(layers) * self._layer_bytes)
        whole = tensor_over(self._arena, torch.float32).view(len(layers), heads, self._tokens)
        for slot, layer in zip(whole, layers):
            slot.copy_(layer)

    def rows(self, ordinal: int) -> dkv.Rows:
        return dkv.Rows(
            arena=self._arena,
            offset=ordinal * self._layer_bytes,
            dtype="f32",
            heads=self._heads,
            tokens=self._tokens,
            head_dim=1,
            head_stride=self._tokens,
            token_stride=1,
        )


def variant_of(name: str, kept: list[list[list[int]]], prompt: Prompt, rankings: Rankings) -> Variant:
    """What the probe is to force: the kept positions as budgets, and a ranking of their own that puts them first."""
    prefix, window = prompt.prefix, list(range(prompt.prefix, prompt.tokens))
    orders, budgets = [], []
    for layer, heads in enumerate(kept):
        for head, positions in enumerate(heads):
            if positions[-len(window) :] != window:
                raise SidecarError(f"{name}: layer {layer} head {head} does not keep the window of {len(window)} tokens")
        lengths = [len(positions) - len(window) for positions in heads]
        order = torch.zeros(len(heads), max(lengths), dtype=torch.int64)
        for head, length in enumerate(lengths):
            order[head, :length] = torch.tensor(heads[head][:length], dtype=torch.int64)
        orders.append(order.to(prompt.logits.device))
        budgets.append(lengths)
    made = Variant(name, torch.tensor(budgets, dtype=torch.int64), f"kept by {name}")
    if int(made.budgets.max()) > prefix:
        raise SidecarError(f"{name}: a head keeps more than the prompt has")
    rankings.orders[made.ranking] = orders
    return made
