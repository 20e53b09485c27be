"""KVzip's scores: which rows of a cache the model attends to when it repeats the context from them.

KVzip (Kim et al. 2025, arXiv 2505.23416): the model is asked to repeat the context, and is given the context itself
as its answer, chunk by chunk. A row's score is the largest attention weight on it of any of these queries, over the
query heads of its KV head. The softmax sees the first tokens, the chunk and the replay's own rows. KVzip+ (KVzap,
arXiv 2601.07891) weighs every attention weight with ‖W_o v‖ / ‖h‖ first, h being the attention's input at the query.

The cost is about that of the prefill and, for each chunk of n tokens, n² products more in every layer.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache, DynamicLayer

from .arguments import not_understood
from .capture import Capture
from .interface import Call, mark, stand_in_front

KINDS = ("kvzip", "kvzip+")
SINKS = 4  # First tokens: always part of the softmax, and always kept (score 1).
CHUNK = 2048
_CARRIED = 8  # Tokens of the chunk before that the instruction quotes.
_QUERY_BLOCK = 256  # Bounds the logits held at a time.


class ReplayError(ValueError):
    """The model or the cache cannot be replayed; the message says why."""


@dataclass(frozen=True)
class Instruction:
    """Token ids that ask the model to repeat its context."""

    first: list[int]
    later: list[int]  # Before the quoted end of the chunk before.
    answer: list[int]  # What the chat template puts before an answer.

    @classmethod
    def of(cls, tokenizer) -> "Instruction":
        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return cls(
            ids("\n\nRepeat the previous context exactly."),
            ids("\n\nRepeat the part of the previous context exactly, starting with"),
            ids(_answer_prefix(tokenizer)),
        )


def replay(cache: Capture, tokenizer, kind: str = "kvzip") -> list[torch.Tensor]:
    """KVzip's scores of the prompt that this cache has captured: [Hkv, n] f32 of each captured layer.

    Runs the cache's model once more over the prompt, and first over the prompt itself where the model has sliding
    windows. Raises ReplayError.
    """
    model = cache.model()
    if model is None:
        raise ReplayError("the model of this cache is gone: replay while it lives")
    if kind not in KINDS:
        raise ReplayError(f"kind is {kind}, not {' or '.join(KINDS)}")
    if cache.refusal is not None:
        raise ReplayError(f"the prompt cannot be replayed: {cache.refusal}")
    count = cache.n_prompt
    if not count or not cache.captured or cache.captured[-1].get_seq_length() < count:
        raise ReplayError("the prompt of this cache has not run yet")
    if cache.tokens is None:
        raise ReplayError("the prompt's token ids are not known: run it with generate(), or set tokens [1, n] of the cache")
    rows = None
    if len(cache.captured) == len(cache.layers):
        rows = [(layer.keys[0, :, :count], layer.values[0, :, :count]) for layer in cache.captured]
    return replay_scores(model, cache.tokens.reshape(-1).tolist(), Instruction.of(tokenizer), rows, (kind,))[kind]


def replay_scores(
    model: torch.nn.Module,
    tokens: list[int],
    instruction: Instruction,
    rows: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    kinds: tuple[str, ...] = ("kvzip",),
    chunk: int = CHUNK,
) -> dict[str, list[torch.Tensor]]:
    """Per kind, for every layer with full attention in order, [Hkv, n] f32 on the model's device.

    rows   every layer's K and V [Hkv, n, D] of the tokens, if known; else the prompt is run first

    Raises ReplayError for a model whose attention is not seen or not understood.
    """
    stand_in_front(model)
    cache = _ReplayCache(model, len(tokens), kinds)
    ids = torch.tensor([tokens], device=model.device)
    with torch.inference_mode(), cache.watching(model):
        if rows is None:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        else:
            cache.fill(rows)
        for begin in range(0, len(tokens), chunk):
            part = tokens[begin : begin + chunk]
            asked = instruction.first if begin == 0 else instruction.later + tokens[max(0, begin - _CARRIED) : begin]
            cache.replay(model, asked + instruction.answer + part, begin, begin + len(part))
    return cache.scores()


def _answer_prefix(tokenizer) -> str:
    """As kvpress takes it out of the chat template: what follows the user's words."""
    if not getattr(tokenizer, "chat_template", None):
        return "\n"
    mark_ = "#" * 16
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return tokenizer.apply_chat_template([{"role": "user", "content": f"context\n{mark_}"}], **options).split(f"\n{mark_}")[1]


class _ReplayCache(TransformersCache):
    """The context's rows, to which every replay adds its own for as long as it runs."""

    def __init__(self, model: torch.nn.Module, tokens: int, kinds: tuple[str, ...]):
        layers = DynamicCache(config=model.config).layers
        self._seen = [_ReplayLayer(self, tokens, kinds) if type(layer) is DynamicLayer else layer for layer in layers]
        if not any(isinstance(layer, _ReplayLayer) for layer in self._seen):
            raise ReplayError(f"{type(model).__name__} has no layer that keeps K and V of every token in its cache")
        super().__init__(layers=self._seen)
        self.tokens, self.chunk = tokens, (0, 0)
        self.hidden: torch.Tensor | None = None  # [q] norms of the running attention's input.
        self._wants_inputs = "kvzip+" in kinds

    @property
    def scored(self) -> list["_ReplayLayer"]:
        return [layer for layer in self._seen if isinstance(layer, _ReplayLayer)]

    def fill(self, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        if len(rows) != len(self._seen):
            raise ReplayError(f"rows of {len(rows)} layers for a model with {len(self._seen)}")
        for layer, (keys, values) in zip(self._seen, rows):
            layer.update(keys[None], values[None])

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module):
        """While it runs, the norm of each attention's input is known to its layer."""
        hooks = []
        if self._wants_inputs:
            attentions = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "o_proj")]
            if not attentions:
                raise ReplayError(f"kvzip+ needs o_proj of each attention, which {type(model).__name__} does not have")
            hooks = [module.register_forward_pre_hook(self._note_input, with_kwargs=True) for module in attentions]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def replay(self, model: torch.nn.Module, ids: list[int], begin: int, end: int) -> None:
        if self._seen[0].get_seq_length() != self.tokens:
            raise ReplayError(f"the cache has {self._seen[0].get_seq_length()} rows of {self.tokens} tokens")
        before = [(layer, layer.keys, layer.values, getattr(layer, "cumulative_length", None)) for layer in self._seen]
        self.chunk = begin, end
        positions = torch.arange(self.tokens, self.tokens + len(ids), device=model.device)[None]
        input_ids = torch.tensor([ids], device=model.device)
        model(input_ids, position_ids=positions, past_key_values=self, use_cache=True, logits_to_keep=1)
        self.chunk = 0, 0
        for layer, keys, values, length in before:
            layer.keys, layer.values = keys, values
            if length is not None:
                layer.cumulative_length = length
        unseen = [index for index, layer in enumerate(self._seen) if isinstance(layer, _ReplayLayer) and layer.end != end]
        if unseen:
            name = type(model).__name__
            raise ReplayError(f"layer {unseen[0]} of {name} does not call its attention through transformers' attention interface")

    def scores(self) -> dict[str, list[torch.Tensor]]:
        return {kind: [layer.scores[kind] for layer in self.scored] for kind in self.scored[0].scores}

    def _note_input(self, module, arguments, options):
        given = options.get("hidden_states", arguments[0] if arguments else None)
        self.hidden = None if given is None else given[0].float().norm(dim=-1)


class _ReplayLayer(DynamicLayer):
    """A layer with full attention: a replay's queries pass through attend()."""

    def __init__(self, cache: _ReplayCache, tokens: int, kinds: tuple[str, ...]):
        super().__init__()
        self._cache, self._tokens, self._kinds = cache, tokens, kinds
        self.scores: dict[str, torch.Tensor] = {}
        self.end = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return mark(keys, self), values

    def attend(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        """In place of the model's own attention function (interface.py); returns what that returns."""
        begin, end = self._cache.chunk
        if end:
            reason = not_understood(call, call.key.shape[2])
            if reason is not None:
                raise ReplayError(f"this model cannot be replayed: {reason}")
            if not self.scores:
                empty = torch.zeros(call.key.shape[1], self._tokens, device=call.key.device)
                self.scores = {kind: empty.clone() for kind in self._kinds}
            norms = self._cache.hidden
            for kind, found in chunk_scores(call, self._tokens, begin, end, self._kinds, norms).items():
                self.scores[kind][:, begin:end] = found
                self.scores[kind][:, :SINKS] = 1
            self.end = end
        return call.run()


def chunk_scores(
    call: Call, tokens: int, begin: int, end: int, kinds: tuple[str, ...], input_norms: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """[Hkv, end - begin] f32 per kind: the replay's queries on rows [begin, end) of the context's `tokens`."""
    query, keys, values = call.query[0], call.key[0], call.value[0]
    q_heads, count, head_dim = query.shape
    heads = keys.shape[0]
    sinks = min(SINKS, begin)
    seen = torch.cat([keys[:, :sinks], keys[:, begin:end], keys[:, tokens:]], dim=1).float().transpose(1, 2)
    scale = head_dim**-0.5 if call.scaling is None else call.scaling
    grouped = query.float().view(heads, q_heads // heads, count, head_dim) * scale
    learned = None if call.sinks is None else call.sinks.float().view(heads, -1, 1, 1)
    outputs = _output_norms(call.module, values[:, begin:end], q_heads).log() if "kvzip+" in kinds else None
    best = {kind: torch.full((heads, end - begin), float("-inf"), device=keys.device) for kind in kinds}
    for at in range(0, count, _QUERY_BLOCK):
        block = grouped[:, :, at : at + _QUERY_BLOCK]
        logits = (block.flatten(1, 2) @ seen).view(*block.shape[:3], -1)
        if call.softcap is not None:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        own = logits[..., sinks + end - begin :]
        later = torch.ones(own.shape[-2:], dtype=torch.bool, device=own.device).triu(at + 1)
        own.masked_fill_(later, float("-inf"))
        total = logits.logsumexp(-1, keepdim=True)
        if learned is not None:
            total = torch.logaddexp(total, learned)
        weights = logits[..., sinks : sinks + end - begin].sub_(total)  # Logarithms.
        for kind in sorted(kinds):  # kvzip+ goes on from kvzip.
            if kind == "kvzip+":
                weights.sub_(input_norms[at : at + _QUERY_BLOCK, None].log())
                found = (weights.amax(2) + outputs).amax(1)
            else:
                found = weights.amax((1, 2))
            best[kind] = torch.maximum(best[kind], found)
    return {kind: found.exp() for kind, found in best.items()}


def _output_norms(module: torch.nn.Module, values: torch.Tensor, q_heads: int) -> torch.Tensor:
    """‖W_o^q v_j‖ of every query head. values [Hkv, n, D]; returns [Hkv, group, n]."""
    heads, _, dim = values.shape
    weight = module.o_proj.weight.float()
    if weight.shape[1] != q_heads * dim:
        raise ReplayError(f"o_proj of {type(module).__name__} takes {weight.shape[1]} values, not {q_heads} heads of {dim}")
    parts = weight.view(-1, q_heads, dim).permute(1, 2, 0)
    grams = (parts @ parts.transpose(1, 2)).view(heads, -1, dim, dim)
    floats = values.float()[:, None]
    return ((floats @ grams) * floats).sum(-1).clamp_min(0).sqrt()
