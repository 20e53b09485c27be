"""The worker's half: watches prefills, hands them to the sidecar, and carries out the plans that have come."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import vllm
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger

import dkv
from dkv.hf.place import place_of
from dkv.hf.storage import Storage

from . import profile
from .blocks import Shortened
from .carry_out import Group, carry_out, wanted, whole
from .messages import Dropped, Key, Prefill, Report, StepMeta
from .pool import shared_pool
from .process import process
from .prompt import Prompt, Shape, State
from .rows import CopiedRows, LayerPages, PageRows
from .settings import Settings
from .sidecar import Sidecar
from .spec import DkvSpec
from .stats import WHOLE, DkvStats

log = init_logger("vllm.dkv")
SAID_MAX = 100  # Lines of the log about requests that were left whole.


class Worker:
    def __init__(self, config, cache_config, settings: Settings):
        layers = process.find_layers()
        groups = [group for group in enumerate(cache_config.kv_cache_groups) if isinstance(group[1].kv_cache_spec, DkvSpec)]
        self._ordinal = {name: ordinal for ordinal, name in enumerate(layers)}
        self._layers, self._cache = layers, cache_config
        self._group_specs = groups
        self._groups: list[Group] = []
        self._of_layer: dict[str, Group] = {}
        one = next(iter(layers.values()))
        dtype = one.kv_cache_torch_dtype
        self._shape = Shape(len(layers), one.num_heads, one.num_kv_heads, one.head_size, dtype)
        device = _own_device(config)
        self._place = place_of(None, device)
        self.pool = shared_pool(config, self._place, device)
        self._pages: list[LayerPages] | None = None  # Of each layer; None: the sidecar cannot read them.
        self.sidecar = Sidecar(
            self._shape,
            groups[0][1].kv_cache_spec.block_size,
            self._place.ready_options,
            _profile_of_rank(config),
            endpoint=settings.endpoint,
            engine=f"vLLM {vllm.__version__}",
            model=_model_name(config.model_config),
            device=self._place.device,
            group=_group_of_ranks(config),
        )
        self.prompts: dict[Key, Prompt] = {}
        self._rows: list[tuple[Prompt, int, int, int]] | None = None  # Of this step's batch: prompt, its tokens, queries.
        self._compacted: dict[str, list[int]] = {}  # Request → its first block in each group.
        self._report = Report()
        self._ranks = config.parallel_config.world_size
        self.stats = DkvStats()
        self._said: set[str] = set()
        process.worker = self

    def bind_caches(self) -> None:
        """The KV caches exist now. Raises ValueError for blocks that the attention kernel splits."""
        for index, spec in self._group_specs:
            layers = [(self._ordinal[name], self._layers[name]) for name in spec.layer_names]
            block = spec.kv_cache_spec.block_size
            for _, layer in layers:
                if layer.kv_cache.dim() != 4 or layer.kv_cache.shape[2] != block:
                    raise ValueError(
                        f"dkv: {layer.layer_name} has a KV cache of shape {tuple(layer.kv_cache.shape)}, not "
                        f"[blocks, KV heads, {block}, 2 · head_dim]: use a --block-size that its kernel does not split"
                    )
            apart = all(getattr(layer.impl, "heads_apart", False) for _, layer in layers)
            blocks, device = layers[0][1].kv_cache.shape[0], layers[0][1].kv_cache.device
            group = Group(index, block, layers, Shortened(blocks, device), apart)
            self._groups.append(group)
            self._of_layer.update({name: group for name in spec.layer_names})
        self._pages = self._find_pages()
        how = "gets copies of K and V" if self._pages is None else "reads K and V where they lie"
        log.info("dkv: the sidecar %s", how)

    def shortened(self, layer_name: str):
        group = self._of_layer.get(layer_name)
        return group.shortened if group is not None else None

    # ---------------------------------------------------------------- one step, in this order

    def begin_step(self, meta: StepMeta) -> None:
        self._rows = None
        for request in meta.gone:
            self._forget(request)
        for prompt in self.prompts.values():
            prompt.done = None
        for prefill in meta.prefills:
            if prefill.done == 0:
                for group in self._groups:
                    group.shortened.forget(prefill.first[group.index])
                self._begin(prefill)
            prompt = self.prompts.get(prefill.key)
            if prompt is not None:
                prompt.done, prompt.blocks = prefill.done, prefill.blocks
        for key, keep in meta.agreed.items():
            if key in self.prompts:
                self.prompts[key].agreed = keep

    def take(self, name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, metadata) -> None:
        """Called by every attention layer. Copies what belongs to prompts, and reports layers that are complete."""
        group = self._of_layer.get(name)
        if group is None or not self.prompts:
            return
        if self._rows is None:
            self._rows = self._find_rows(group, metadata)
        layer = self._layers[name]
        for prompt, done, begin, end in self._rows:
            if prompt.state == State.PREFILL and prompt.take(
                self._ordinal[name], done, query[begin:end], key[begin:end], value[begin:end]
            ):
                self.sidecar.layer_ready(prompt, self._ordinal[name], **_attention_of(layer.impl))

    def end_step(self) -> None:
        """Carries out the plans that have come. Does not wait for those that have not."""
        self._rows = None
        for prompt in list(self.prompts.values()):
            if prompt.state == State.WHOLE:
                self._leave_whole(prompt, prompt.reason, prompt.detail)
            elif prompt.blocks is None:
                continue  # Its prefill goes on.
            elif not prompt.complete():
                self._leave_whole(prompt, "a part of its prefill did not pass through Python (a CUDA graph)")
            elif prompt.state == State.PLANNED and self._agreed(prompt):
                self._carry_out(prompt)
            else:
                prompt.steps += 1

    def report(self) -> Report | None:
        report, self._report = self._report, Report()
        return None if report.is_empty() else report

    def close(self) -> None:
        for prompt in list(self.prompts.values()):
            self._end(prompt, "the engine ends")
        self.sidecar.close()
        self.pool = self._pages = None  # Else vLLM's cache outlives it.
        if process.worker is self:
            process.worker = None

    # ---------------------------------------------------------------- helpers

    def _begin(self, prefill) -> None:
        choice = prefill.choice
        if choice.off or choice.wrong:
            self._count("its request said off" if choice.off else "its request's wish was not understood", choice.wrong)
            return
        try:
            queries = self.sidecar.queries(choice.policy)
            prompt = Prompt(prefill, self._shape, queries, self._make_rows(prefill.tokens), self._place)
        except Exception as error:  # No memory for what is copied.
            self._count(type(error).__name__, str(error))
            self._ask(prefill, whole(prefill, self._groups))
            return
        self.prompts[prefill.key] = prompt
        self.sidecar.begin(prompt)

    def _find_pages(self) -> list[LayerPages] | None:
        if self.pool is None:
            return None
        found = {
            ordinal: self.pool.pages_of(layer, group.index) for group in self._groups for ordinal, layer in group.layers
        }
        return None if None in found.values() else [found[ordinal] for ordinal in range(len(found))]

    def _make_rows(self, tokens: int) -> CopiedRows | PageRows:
        if self._pages is not None:
            return PageRows(self._pages, tokens)
        shape = self._shape
        storage = Storage(shape.layers, shape.kv_heads, shape.head_dim, tokens, shape.dtype, self._place)
        return CopiedRows(storage, tokens)

    def _find_rows(self, group: Group, metadata) -> list[tuple[Prompt, int, int, int]]:
        """Which rows of this step's batch are prompts. On a GPU the one synchronization of a step with a prefill."""
        mine = {prompt.first[group.index]: prompt for prompt in self.prompts.values() if prompt.done is not None}
        if not mine:
            return []
        starts, firsts = metadata.query_start_loc.tolist(), metadata.block_table[:, 0].tolist()
        return [
            (mine[first], mine[first].done, starts[row], starts[row + 1])
            for row, first in enumerate(firsts[: len(starts) - 1])
            if first in mine and starts[row + 1] > starts[row]
        ]

    def _agreed(self, prompt: Prompt) -> bool:
        """Whether the blocks that all ranks keep are known. Each rank fills them up with rows of its own."""
        if not prompt.asked:
            prompt.asked = True
            mine = wanted(prompt, self._groups)
            if self._ranks == 1:
                prompt.agreed = mine.keep
            else:
                self._ask(prompt, mine)
        return prompt.agreed is not None

    def _ask(self, prompt: Prompt | Prefill, mine: Dropped) -> None:
        if self._ranks > 1:
            self._report.wanted[prompt.key] = mine

    def _carry_out(self, prompt: Prompt) -> None:
        if prompt.agreed == whole(prompt, self._groups).keep:
            self._count("no block would go back")
            self._end(prompt, None)
            return
        dropped, positions, error = carry_out(prompt, self._groups)
        whose, extra = (prompt.session_id, prompt.key[0], prompt.tokens), {"dkv_session": prompt.session_id}
        if error is None:
            log.info("dkv: session %s: request %s of %d tokens is compressed", *whose, extra=extra)
        else:
            log.error("dkv: session %s: request %s of %d tokens is compacted in part: %r", *whose, error, extra=extra)
        self._compacted[prompt.key[0]] = prompt.first
        self._report.dropped[prompt.key] = dropped
        self._applied(prompt, dropped, positions)
        self._end(prompt, None, sum(group.bytes_of(dropped) for group in self._groups))

    def _applied(self, prompt: Prompt, dropped: Dropped, positions: list[list[torch.Tensor]]) -> None:
        self.stats.add("steps that plans came late", prompt.steps)

    def _leave_whole(self, prompt: Prompt, reason: str, detail: str = "") -> None:
        if not prompt.asked:  # The other ranks must not wait for it.
            self._ask(prompt, whole(prompt, self._groups))
        self._count(reason, detail, prompt.session_id)
        self._end(prompt, reason)

    def _count(self, reason: str, detail: str | None = None, session: str | None = None) -> None:
        """Reasons are few, and details, which may quote a request, are not counted by."""
        self.stats.add(WHOLE + reason)
        said = f"{reason}: {detail}" if detail else reason
        if said not in self._said and len(self._said) < SAID_MAX:
            self._said.add(said)
            whose = f"session {session}: " if session else ""
            told = "dkv: %sa request is left whole: %s (said once, and counted)"
            log.warning(told, whose, said, extra={"dkv_session": session})

    def _end(self, prompt: Prompt, reason: str | None, bytes_pool: int = 0) -> None:
        prompt.abandoned = True
        del self.prompts[prompt.key]
        self.sidecar.end(prompt, reason, bytes_pool)

    def _forget(self, request: str) -> None:
        for prompt in [each for each in self.prompts.values() if each.key[0] == request]:
            self._leave_whole(prompt, "it ended or was preempted before its plan came")
        first = self._compacted.pop(request, None)
        if first is not None:
            for group in self._groups:
                group.shortened.forget(first[group.index])


def _own_device(config) -> torch.device:
    """This rank's: vLLM's config says "cuda" on all of them."""
    device = torch.device(config.device_config.device)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _profile_of_rank(config) -> dkv.Profile | None:
    whole, ranks = process.profile, config.parallel_config.tensor_parallel_size
    if whole is None:
        return None
    return profile.of_rank(whole, config.model_config.get_total_num_kv_heads(), get_tensor_model_parallel_rank(), ranks)


def _attention_of(impl) -> dict:
    """What layer_ready() must know of a layer's attention."""
    known: dict = {"scale": impl.scale}
    softcap = getattr(impl, "logits_soft_cap", None)
    if softcap:
        known["softcap"] = float(softcap)
    if getattr(impl, "sinks", None) is not None:
        known["sink_logits"] = impl.sinks.detach().float().tolist()
    return known


def _model_name(model_config) -> str:
    """What the sidecar finds a preset by."""
    served = model_config.served_model_name
    served = served[0] if isinstance(served, list) else served
    return Path(served or model_config.model).name


def _group_of_ranks(config) -> int:
    """Names the ranks of one engine to the sidecar; 0: a rank alone."""
    if config.parallel_config.world_size == 1:
        return 0
    return zlib.crc32(config.kv_transfer_config.engine_id.encode()) or 1
