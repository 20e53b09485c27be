"""A cache that remembers what a file of it needs: the prompt's last queries, and how its logits are made.

    cache = dkv.hf.Capture(model)
    out = model.generate(**inputs, past_key_values=cache)
    dkv.hf.save(cache, "prompt.safetensors")
"""

from __future__ import annotations

import weakref

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache, DynamicLayer

from .announce import announce_prompts, unwrapped, why_left_alone
from .arguments import changed, computed_otherwise, masked_otherwise, not_understood
from .copies import Copyable
from .interface import Call, mark, stand_in_front


class CaptureLayer(DynamicLayer):
    """A full-attention layer; the queries that come while the prompt does pass through attend()."""

    def __init__(self, cache: "Capture", index: int):
        super().__init__()
        self.index = index
        self._cache = weakref.ref(cache)
        self._forget()

    def _forget(self) -> None:
        self.queries: torch.Tensor | None = None  # [Hq, rows, D], the last of the prompt so far.
        self.scaling: float | None = None
        self.softcap: float | None = None
        self.sink_logits: torch.Tensor | None = None  # [Hq], where the model has them.
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None  # What update() returned last.

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        cache = self._cache()
        if cache is not None and not self.get_seq_length():
            cache._first_rows(key_states)
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self._given = mark(keys, self), values
        return self._given

    def attend(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        """In place of the model's own attention function (interface.py); returns what that returns."""
        result, cache, count = call.run(), self._cache(), call.key.shape[2]
        if cache is None or count > cache.n_prompt:
            return result
        reason = self._misfit(call)
        if reason is None and count == cache.n_prompt:
            reason = computed_otherwise(call, result[0])
        cache.failure = cache.failure or reason
        self._take(call.query.detach()[0], cache.rows)
        self.scaling, self.softcap = call.scaling, call.softcap
        self.sink_logits = None if call.sinks is None else call.sinks.detach()
        return result

    def _misfit(self, call: Call) -> str | None:
        given, self._given = self._given, None
        return changed(call, given) or not_understood(call, call.key.shape[2]) or masked_otherwise(call)

    def copied(self, cache: "Capture") -> "CaptureLayer":
        """For a copy of the cache."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._cache = weakref.ref(cache)
        if self.keys is not None:
            twin.keys, twin.values = self.keys.detach().clone(), self.values.detach().clone()
        return twin

    def reset(self) -> None:
        self.keys = self.values = None  # transformers 4 would leave zeros.
        self.is_initialized = False
        self._forget()

    def _take(self, query: torch.Tensor, rows: int | None) -> None:
        if self.queries is not None:
            query = torch.cat([self.queries, query], dim=1)
        self.queries = (query if rows is None else query[:, -rows:]).clone()


class Capture(Copyable, TransformersCache):
    """As transformers' DynamicCache, for one sequence whose prompt is to be saved.

    queries        how many of the prompt's last queries to keep; None: all of them (h2o)
    prompt_tokens  the prompt's length, for a prefill that the caller cuts into chunks himself; generate() tells it

    The first forward, or the prompt that generate() is given, is the prompt; what is generated after it is not saved.
    `failure` says why the prompt cannot be saved, once that is known: its model gives its attention more than a file
    can say.
    """

    max_cache_len = -1  # No bound; see Cache.

    def __init__(self, model: torch.nn.Module, queries: int | None = 32, *, prompt_tokens: int | None = None):
        if queries is not None and queries < 1:
            raise ValueError(f"queries is {queries}: at least 1, or None for all")
        model = unwrapped(model)
        self._left_alone = why_left_alone(model)  # Read by announce.py, too.
        layers = [] if self._left_alone else DynamicCache(config=model.config).layers
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = CaptureLayer(self, index)
        super().__init__(layers=layers)
        self.layer_class_to_replicate = DynamicLayer  # For a model with more layers than this one's.
        self.failure: str | None = self._left_alone
        self.model, self.rows = weakref.ref(model), queries
        self.tokens: torch.Tensor | None = None  # [1, n] ids of the prompt, where generate() was given them.
        self.next_token: int | None = None  # The likeliest behind the prompt, where it was seen.
        self.n_prompt = self._said = prompt_tokens or 0
        stand_in_front(model)
        announce_prompts(model)

    @property
    def captured(self) -> list[CaptureLayer]:
        """The layers that a file has: those that bound their own cache (sliding windows) are not among them."""
        return [layer for layer in self.layers if isinstance(layer, CaptureLayer)]

    def reset(self) -> None:
        super().reset()
        self.tokens, self.next_token, self.failure = None, None, self._left_alone
        self.n_prompt = self._said

    # ---------------------------------------------------------------- called by announce.py and the layers

    def _note_prompt(self, ids: torch.Tensor | None) -> None:
        if self.get_seq_length() == 0:
            self.tokens = None if ids is None else ids.detach().cpu()

    def _announce(self, count: int | None) -> None:
        if self.get_seq_length() == 0 and not self._said:
            self.n_prompt = count or 0
            self._watch_logits()

    def _generate_ended(self) -> None:
        self._unwatch()

    @property
    def refusal(self) -> str | None:
        """Why what has come cannot be saved; None when it can."""
        unseen = self.n_prompt and any(layer.get_seq_length() and layer.queries is None for layer in self.captured)
        if self.failure is None and unseen:
            name = type(self.model()).__name__
            return f"{name} does not attend to the cache's rows through transformers' attention interface"
        return self.failure

    def _takes_guesses(self) -> bool:
        return self.get_seq_length() > 0

    def _was_copied(self) -> None:
        self._hook = None

    def _first_rows(self, keys: torch.Tensor) -> None:
        if keys.shape[0] != 1:
            raise ValueError(f"a batch of {keys.shape[0]}: one prompt is captured at a time")
        self.n_prompt = self.n_prompt or keys.shape[2]

    # ---------------------------------------------------------------- helpers

    _hook = None

    def _watch_logits(self) -> None:
        model = self.model()
        if model is not None and self._hook is None:
            self._hook = model.register_forward_hook(self._see_logits)

    def _unwatch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _see_logits(self, model, arguments, output) -> None:
        """The logits of the prompt's last token come with the forward that completes it."""
        if self.get_seq_length() == self.n_prompt:
            self.next_token = int(output.logits[0, -1].argmax())
            self._unwatch()
