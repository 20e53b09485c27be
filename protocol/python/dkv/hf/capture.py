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

from . import attention
from .announce import announce_prompts
from .copies import Copyable


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

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        cache = self._cache()
        if cache is not None and not self.get_seq_length():
            cache._first_rows(key_states)
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys._dkv_layer = weakref.ref(self)  # For attention.dkv_attention.
        return keys, values

    def attend(self, module, query, key, value, attention_mask, scaling, softcap, **kwargs) -> torch.Tensor:
        """Called by dkv_attention with what update() returned. Returns [1, q, Hq, D]."""
        cache = self._cache()
        if cache is not None and key.shape[2] <= cache.n_prompt:
            self._take(query.detach()[0], cache.rows)
            self.scaling, self.softcap = scaling, softcap
        return attention.plain_attention(module, query, key, value, attention_mask, scaling, softcap, **kwargs)

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
    Sets the model's attention implementation to "dkv".
    """

    def __init__(self, model: torch.nn.Module, queries: int | None = 32, *, prompt_tokens: int | None = None):
        if queries is not None and queries < 1:
            raise ValueError(f"queries is {queries}: at least 1, or None for all")
        layers = DynamicCache(config=model.config).layers
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = CaptureLayer(self, index)
        super().__init__(layers=layers)
        self.model, self.rows = weakref.ref(model), queries
        self.tokens: torch.Tensor | None = None  # [1, n] ids of the prompt, where generate() was given them.
        self.next_token: int | None = None  # The likeliest behind the prompt, where it was seen.
        self.n_prompt = self._said = prompt_tokens or 0
        attention.register()
        if model.config._attn_implementation != attention.NAME:
            model.set_attn_implementation(attention.NAME)
        announce_prompts(model)

    @property
    def captured(self) -> list[CaptureLayer]:
        """The layers that a file has: those that bound their own cache (sliding windows) are not among them."""
        return [layer for layer in self.layers if isinstance(layer, CaptureLayer)]

    def reset(self) -> None:
        super().reset()
        self.tokens = self.next_token = None
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
