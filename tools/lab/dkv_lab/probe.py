"""One prefill per prompt, then many budgets in one batched forward.

A variant says how many of each head's best-ranked prefix tokens stay visible. All variants read the
same prefix: per KV head, variants, query group and answer tokens are folded into the rows of one
product, so the prompt's keys and values exist once however many variants there are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from dkv.errors import UserError
from dkv.hf.arguments import differing, foreign
from dkv.hf.interface import Call
from dkv.hf.profile_file import sliding_windows
from dkv.hf.replay import replay_scores

NAME = "dkv_probe"
_QUERY_BLOCK = 256  # Bounds the logits of a prefill whose attention is computed by hand.
_CHUNK_FLOATS = 1 << 22  # Logits held at a time in the batched forward.
_LOGIT_FLOATS = 1 << 25  # Output logits held at a time: tokens per forward times vocabulary.


class ProbeError(UserError):
    """The model or the prompt cannot be probed; the message says why."""


@dataclass
class Layer:
    """What one layer left behind after the prefill."""

    keys: torch.Tensor  # [Hkv, n, D], after RoPE
    values: torch.Tensor  # [Hkv, n, D]
    queries: torch.Tensor  # [Hq, window, D], after RoPE; the last tokens'
    scale: float
    softcap: float | None
    sliding: int | None  # The sliding window, or None for full attention.
    accumulated: torch.Tensor | None = None  # [Hkv, n]: attention of all queries, mean over the group
    sinks: torch.Tensor | None = None  # [Hq]: a logit of each head in the softmax's sum, without a value

    @property
    def group(self) -> int:
        return self.queries.shape[0] // self.keys.shape[0]

    def row_sinks(self, rows: int) -> torch.Tensor | None:
        """For logits [Hkv, group * rows, tokens], `rows` queries of each query head: [Hkv, group * rows, 1] f32."""
        if self.sinks is None:
            return None
        return self.sinks.float().repeat_interleave(rows).view(self.keys.shape[0], -1, 1)


@dataclass
class Prompt:
    """One prompt after its prefill with the full cache."""

    tokens: int
    window: int
    layers: list[Layer]
    logits: torch.Tensor  # [vocabulary]: what follows the last token

    @property
    def prefix(self) -> int:
        return self.tokens - self.window

    @functools.cached_property
    def compressed(self) -> list[int]:
        """Model indices of the layers a policy may cut: those with full attention."""
        return [index for index, layer in enumerate(self.layers) if layer.sliding is None]

    @property
    def kv_heads(self) -> int:
        return self.layers[0].keys.shape[0]


def narrowed(prompt: Prompt, window: int) -> Prompt:
    """The same prompt with fewer last tokens as its window."""
    layers = [dataclasses.replace(layer, queries=layer.queries[:, -window:]) for layer in prompt.layers]
    return dataclasses.replace(prompt, window=window, layers=layers)


@dataclass
class Variant:
    """Budgets under which the answer is scored."""

    name: str
    budgets: torch.Tensor  # [compressed layers, Hkv], prefix tokens
    ranking: str = "scores"
    layers: list[Layer] | None = None  # Whose rows are read, as they come back from fewer bits; None: the prompt's.


@dataclass
class Rankings:
    """Prefix positions of every head, best first, by the ranking's name: [Hkv, N] per compressed layer."""

    orders: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a variant made of a forced text of T tokens. All [variants, T]."""

    logprob: torch.Tensor  # of each token
    hit: torch.Tensor  # bool: the token was the most likely one
    kl: torch.Tensor | None  # KL(full || variant) of each next-token distribution; the first is 0
    agree: torch.Tensor | None  # bool: the variant's most likely token is the full cache's


@functools.lru_cache(maxsize=1)
def register() -> None:
    """Makes "dkv_probe" a name for set_attn_implementation. The masks are the probe's own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, probe_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def probe_attention(*arguments, probe_pass=None, **options):
    """What transformers calls. Everything is in `probe_pass`, which came through the model's kwargs."""
    if probe_pass is None:
        raise ProbeError(f'attention "{NAME}" serves dkv_lab only; choose another with set_attn_implementation')
    call = Call(probe_attention, arguments, options)
    reason = foreign(call)
    if reason is not None:
        raise ProbeError(f"this model cannot be probed: {reason}")
    return probe_pass.attend(call.module.layer_idx, call), None


class Probe:
    """Runs one model. While it lives, the model's attention implementation is "dkv_probe"."""

    def __init__(self, model, window: int = 32):
        register()
        self.model, self.window = model, window
        self.slidings = sliding_windows(model.config.get_text_config())
        if all(sliding is not None for sliding in self.slidings):
            raise ProbeError("the model has no layer with full attention: there is nothing to compress")
        model.set_attn_implementation(NAME)

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, accumulate: bool = False, window: int | None = None) -> Prompt:
        """ids [n]. `accumulate`: also H2O's sums over all queries, which cost about a second prefill's attention."""
        window = self.window if window is None else window
        if ids.numel() <= window:
            raise ProbeError(f"the prompt has {ids.numel()} tokens and the window {window}: nothing to compress")
        recorder = _Prefill(self.slidings, window, accumulate)
        logits = self._forward(ids[None], 0, recorder, logits_to_keep=1)
        if len(recorder.layers) != len(self.slidings):
            seen, name = len(recorder.layers), type(self.model).__name__
            raise ProbeError(
                f"this model cannot be probed: {seen} of the {len(self.slidings)} layers of {name} call their attention "
                "through transformers' attention interface"
            )
        return Prompt(ids.numel(), window, recorder.layers, logits[0, -1].float())

    def replay(self, prompt: Prompt, tokens: list[int], instruction, kinds: tuple[str, ...] = ("kvzip",)) -> dict[str, list]:
        """Replay scores [Hkv, n] of every compressed layer, by kind. dkv.hf.replay"""
        rows = [(layer.keys, layer.values) for layer in prompt.layers]
        self.model.set_attn_implementation("sdpa" if all(layer.softcap is None for layer in prompt.layers) else "eager")
        try:
            return replay_scores(self.model, tokens, instruction, rows, kinds)
        finally:
            self.model.set_attn_implementation(NAME)

    @torch.inference_mode()
    def greedy(self, prompt: Prompt, tokens: int, asked: tuple[int, ...] = ()) -> torch.Tensor:
        """The next `tokens` tokens with the full cache, after `asked`; ends of sequence are tokens like others. [tokens]"""
        decoder, position, out = _Decode(prompt), prompt.tokens, []
        waiting = [torch.tensor(token, device=prompt.logits.device) for token in asked] or [prompt.logits.argmax()]
        if not asked:
            out = waiting[:]
        while len(out) < tokens:
            logits = self._forward(waiting.pop(0)[None, None], position, decoder)
            position += 1
            if not waiting:
                out.append(logits[0, -1].float().argmax())
                waiting = out[-1:]
        return torch.stack(out)

    @torch.inference_mode()
    def force(
        self,
        prompt: Prompt,
        answer: torch.Tensor,
        variants: list[Variant],
        rankings: Rankings,
        compare: bool = False,
        judged: torch.Tensor | None = None,
    ) -> Outcome:
        """Scores answer [T] under every variant. The first token comes from the prefill, the same for all.

        `compare`: also against the full cache's distributions. `judged`: which of the T tokens are scored, ascending
        (None: all); the others are questions, which come before what they ask for.
        """
        judged = torch.arange(answer.numel()) if judged is None else judged
        check_variants(prompt, variants, rankings)
        reference = self._logprobs(prompt, answer, judged, [_whole(prompt)], rankings)[0] if compare else None
        per_pass = max(1, _LOGIT_FLOATS // (max(1, judged.numel()) * prompt.logits.numel()))
        parts = []
        for begin in range(0, len(variants), per_pass):
            logprobs = self._logprobs(prompt, answer, judged, variants[begin : begin + per_pass], rankings)
            parts.append(score(logprobs, answer[judged], reference))
        join = lambda name: None if parts[0][name] is None else torch.cat([part[name] for part in parts])
        return Outcome(join("logprob"), join("hit"), join("kl"), join("agree"))

    def _logprobs(self, prompt, answer, judged, variants, rankings) -> torch.Tensor:
        """[variants, judged, vocabulary]"""
        parts = [prompt.logits.expand(len(variants), 1, -1)] if int(judged[0]) == 0 else []
        if int(judged[-1]) > 0:
            forced = _Forced(prompt, variants, rankings, int(judged[-1]))
            ids = answer[: int(judged[-1])].expand(len(variants), -1)
            wanted = (judged[judged > 0] - 1).to(ids.device)
            parts.append(self._forward(ids, prompt.tokens, forced, logits_to_keep=wanted).float())
        return torch.cat(parts, dim=1).log_softmax(-1)

    def _forward(self, ids, position: int, probe_pass, **kwargs) -> torch.Tensor:
        positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
        if ids.shape[0] > 1:
            positions = positions.expand(ids.shape[0], -1)
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, probe_pass=probe_pass, **kwargs)
        return out.logits


def check_variants(prompt: Prompt, variants: list[Variant], rankings: Rankings) -> None:
    shape = (len(prompt.compressed), prompt.kv_heads)
    for variant in variants:
        if tuple(variant.budgets.shape) != shape:
            raise ProbeError(f"{variant.name}: budgets are {list(variant.budgets.shape)}, not {list(shape)}")
        if int(variant.budgets.min()) < 0 or int(variant.budgets.max()) > prompt.prefix:
            raise ProbeError(f"{variant.name}: a budget is outside 0 … {prompt.prefix}")
        if variant.ranking not in rankings.orders and int(variant.budgets.min()) < prompt.prefix:
            raise ProbeError(f"{variant.name}: no ranking {variant.ranking}")


# -------------------------------------------------------------------- the three passes


class _Prefill:
    """Whole causal attention; keeps what later passes read."""

    def __init__(self, slidings, window: int, accumulate: bool):
        self.slidings, self.window, self.accumulate = slidings, window, accumulate
        self.layers: list[Layer] = []

    def attend(self, index: int, call: Call) -> torch.Tensor:
        query, key, value, softcap = call.query, call.key, call.value, call.softcap
        scale = query.shape[-1] ** -0.5 if call.scaling is None else call.scaling
        sinks = None if call.sinks is None else call.sinks.detach()
        reason = differing(key, value)
        if index != len(self.layers):
            reason = f"{type(call.module).__name__} calls its attention for layer {index} after {len(self.layers)} layers"
        if reason is not None:
            raise ProbeError(f"this model cannot be probed: {reason}")
        sliding = self.slidings[index]
        if sliding is not None and sliding >= key.shape[2]:
            mask = None
        else:
            mask = None if sliding is None else _band(key.shape[2], sliding, key.device)
        wants_sums = self.accumulate and sliding is None
        sums = None
        if softcap is None and sinks is None and not wants_sums:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )[0].transpose(0, 1)
        else:
            out, sums = _tiled_attention(query[0], key[0], value[0], scale, softcap, mask, sinks, wants_sums)
        rows = key[0].contiguous(), value[0].contiguous(), query[0, :, -self.window :].clone()
        self.layers.append(Layer(*rows, scale, softcap, sliding, sums, sinks))
        return out[None]


class _Decode:
    """One sequence, token by token, with everything visible."""

    def __init__(self, prompt: Prompt):
        self.prompt = prompt
        self.tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, index: int, call: Call) -> torch.Tensor:
        layer, query, key, value = self.prompt.layers[index], call.query, call.key, call.value
        if index in self.tails:
            key = torch.cat([self.tails[index][0], key], dim=2)
            value = torch.cat([self.tails[index][1], value], dim=2)
        self.tails[index] = (key, value)
        keys, values = torch.cat([layer.keys[None], key], 2), torch.cat([layer.values[None], value], 2)
        if layer.sliding is not None:
            keys, values = keys[:, :, -layer.sliding :], values[:, :, -layer.sliding :]
        rows = query[0].reshape(layer.keys.shape[0], -1, query.shape[-1]) * layer.scale
        logits = cap(rows @ keys[0].transpose(1, 2), layer.softcap)
        out = softmax(logits.float(), layer.row_sinks(1)).to(query.dtype) @ values[0]
        return out.reshape(1, 1, query.shape[1], -1)


class _Forced:
    """All variants of the answer at once over the shared prefix."""

    def __init__(self, prompt: Prompt, variants: list[Variant], rankings: Rankings, tokens: int):
        self.prompt, self.variants, self.rankings, self.tokens = prompt, variants, rankings, tokens
        self.ordinals = {index: ordinal for ordinal, index in enumerate(prompt.compressed)}

    def attend(self, index: int, call: Call) -> torch.Tensor:
        layer, query, key, value = self.prompt.layers[index], call.query, call.key, call.value
        heads, count = layer.keys.shape[0], query.shape[0]
        rows = (query * layer.scale).reshape(count, heads, layer.group * self.tokens, -1)
        out = query.new_empty(count, heads, layer.group * self.tokens, value.shape[-1])
        for head in range(heads):
            tail = (key[:, head], value[:, head])
            part = self._sliding if layer.sliding is not None else self._ranked
            part(index, head, rows[:, head], tail, out[:, head])
        return out.reshape(count, heads * layer.group, self.tokens, -1).transpose(1, 2)

    def _sliding(self, index, head, rows, tail, out) -> None:
        layer, n = self.prompt.layers[index], self.prompt.tokens
        seen = min(layer.sliding - 1, n)
        reach = torch.arange(self.tokens, device=rows.device)[:, None] + n - layer.sliding
        hidden = torch.arange(n - seen, n, device=rows.device)[None] <= reach
        keys, values = layer.keys[head, n - seen :], layer.values[head, n - seen :]
        for part in _chunks(range(rows.shape[0]), rows.shape[1] * (seen + self.tokens)):
            part = list(part)
            self._joint(layer, head, rows, tail, part, keys, values, hidden.repeat(layer.group, 1), out)

    def _ranked(self, index, head, rows, tail, out) -> None:
        layer, ordinal = self.prompt.layers[index], self.ordinals[index]
        prefix = self.prompt.prefix
        budgets = [int(variant.budgets[ordinal, head]) for variant in self.variants]
        groups: dict[tuple, list[int]] = {}
        for i, budget in enumerate(budgets):
            variant = self.variants[i]
            groups.setdefault((variant.ranking if budget < prefix else None, id(variant.layers)), []).append(i)
        for (name, _), members in groups.items():
            own = self.variants[members[0]].layers
            order = None if name is None else self.rankings.orders[name][ordinal][head]
            members.sort(key=lambda i: -budgets[i])
            self._visible(layer if own is None else own[index], head, order, members, budgets, rows, tail, out)

    def _visible(self, layer, head, order, members, budgets, rows, tail, out) -> None:
        """Variants of one ranking, largest budget first: a chunk reads no more columns than its first needs."""
        prefix = self.prompt.prefix
        while members:
            longest = budgets[members[0]]
            width = longest + self.prompt.window + self.tokens
            fit = max(1, _CHUNK_FLOATS // (rows.shape[1] * width))
            part = [i for i in members[:fit] if 2 * budgets[i] >= longest - 64]
            members = members[len(part) :]
            if order is None:
                keys, values = layer.keys[head], layer.values[head]
            else:
                ids = torch.cat([torch.arange(prefix, self.prompt.tokens, device=order.device), order[:longest]])
                keys, values = layer.keys[head, ids], layer.values[head, ids]
            hidden = None
            if any(budgets[i] != longest for i in part):
                limits = torch.tensor([budgets[i] for i in part], device=rows.device) + self.prompt.window
                hidden = (torch.arange(keys.shape[0], device=rows.device)[None] >= limits[:, None])[:, None]
            self._joint(layer, head, rows, tail, part, keys, values, hidden, out)

    def _joint(self, layer, head, rows, tail, part, keys, values, hidden, out) -> None:
        """One softmax over the shared rows and each variant's own tail."""
        chosen, shared = rows[part], keys.shape[0]
        logits = rows.new_empty(*chosen.shape[:2], shared + self.tokens, dtype=torch.float32)
        logits[..., :shared] = (chosen.reshape(-1, chosen.shape[-1]) @ keys.T).view(*chosen.shape[:2], -1)
        logits[..., shared:] = chosen @ tail[0][part].transpose(1, 2)
        logits = cap(logits, layer.softcap)
        if hidden is not None:
            logits[..., :shared].masked_fill_(hidden, float("-inf"))
        logits[..., shared:].masked_fill_(self._future(rows, layer.sliding), float("-inf"))
        sinks = layer.row_sinks(self.tokens)
        weights = softmax(logits, None if sinks is None else sinks[head]).to(rows.dtype)
        mixed = weights[..., :shared].reshape(-1, shared) @ values
        out[part] = mixed.view(*chosen.shape[:2], -1) + weights[..., shared:] @ tail[1][part]

    def _future(self, rows, sliding) -> torch.Tensor:
        """[group * tokens, tokens]: which tail tokens a row must not see."""
        hidden = ~torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=rows.device).tril()
        if sliding is not None:
            hidden |= torch.ones_like(hidden).tril(-sliding)
        return hidden.repeat(rows.shape[1] // self.tokens, 1)


# -------------------------------------------------------------------- arithmetic


def _whole(prompt: Prompt) -> Variant:
    shape = (len(prompt.compressed), prompt.kv_heads)
    return Variant("full", torch.full(shape, prompt.prefix, dtype=torch.int64))


def score(logprobs: torch.Tensor, answer: torch.Tensor, reference: torch.Tensor | None) -> dict:
    """Outcome's fields, of log probabilities [variants, T, vocabulary]; reference [T, vocabulary]: the full cache's."""
    best = logprobs.argmax(-1)
    scored = {
        "logprob": logprobs.gather(-1, answer.expand(logprobs.shape[0], -1)[..., None])[..., 0].cpu(),
        "hit": (best == answer).cpu(),
        "kl": None,
        "agree": None,
    }
    if reference is not None:
        weights = reference.exp()
        entropy = (weights * reference).sum(-1)
        cross = torch.stack([(weights * row).sum(-1) for row in logprobs])
        scored["kl"] = (entropy - cross).clamp_min(0).cpu()
        scored["agree"] = (best == reference.argmax(-1)).cpu()
    return scored


def softmax(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the last dimension; `sinks` [..., 1] take part in the sum, so that the weights add up to less than 1."""
    if sinks is None:
        return logits.softmax(-1)
    return (logits - torch.logaddexp(logits.logsumexp(-1, keepdim=True), sinks)).exp()


def cap(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _chunks(members: range, floats: int) -> Iterator[range]:
    size = max(1, _CHUNK_FLOATS // max(1, floats))
    for begin in range(0, len(members), size):
        yield members[begin : begin + size]


def _band(tokens: int, sliding: int, device) -> torch.Tensor:
    """[n, n] bool: causal, and no further back than the sliding window."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return seen & ~torch.ones_like(seen).tril(-sliding)


def _tiled_attention(query, key, value, scale, softcap, mask, sinks, wants_sums):
    """By hand in blocks of queries, for capped logits, sinks and sums over all queries; never n × n at once.

    Returns [n, Hq, Dv] and, if wanted, [Hkv, n].
    """
    heads, tokens = key.shape[0], key.shape[1]
    group = query.shape[0] // heads
    sums = key.new_zeros(heads, tokens, dtype=torch.float32) if wants_sums else None
    pieces = []
    for begin in range(0, tokens, _QUERY_BLOCK):
        end = min(tokens, begin + _QUERY_BLOCK)
        rows = (query[:, begin:end] * scale).reshape(heads, group * (end - begin), -1)
        logits = cap((rows @ key[:, :end].transpose(1, 2)).float(), softcap)
        logits = logits.view(heads, group, end - begin, end)
        if mask is None:
            seen = torch.ones(end - begin, end, dtype=torch.bool, device=key.device).tril(begin)
        else:
            seen = mask[begin:end, :end]
        of_heads = None if sinks is None else sinks.float().view(heads, group, 1, 1)
        weights = softmax(logits.masked_fill_(~seen, float("-inf")), of_heads)
        if wants_sums:
            sums[:, :end] += weights.sum((1, 2)) / group
        mixed = weights.view(heads, -1, end).to(value.dtype) @ value[:, :end]
        pieces.append(mixed.view(heads * group, end - begin, -1))
    return torch.cat(pieces, dim=1).transpose(0, 1), sums
