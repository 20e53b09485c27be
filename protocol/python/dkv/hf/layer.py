"""One attention layer's rows: whole in shared memory, then, once compressed, kept rows and a tail."""

from __future__ import annotations

import weakref

import torch
from transformers.cache_utils import DynamicLayer

from .arguments import changed, not_understood, tail_mask, wants_weights
from .attention import Prefix, two_part_attention
from .interface import Call, mark

_TAIL_ROWS = 64  # First size of a tail; it doubles.


class DkvLayer(DynamicLayer):
    """A full-attention layer of a dkv cache, in one of three states.

    whole       K and V of every token, views of the cache's storage
    compressed  `prefix` holds the prompt's kept rows, `tail` what came after it
    heap        as transformers' own DynamicLayer: what dkv does not handle, and what was saved whole

    get_seq_length() is the logical length in all of them, so that positions stay right.
    """

    is_compileable = False

    def __init__(self, cache, index: int, ordinal: int):
        super().__init__()
        self.index = index  # In the model.
        self.ordinal = ordinal  # Among the layers that can be compressed.
        self._cache = weakref.ref(cache)
        self._forget()

    def _forget(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.length = 0
        self.heap = False
        self.prefix: Prefix | None = None
        self.mass_kept: float | None = None
        self.positions: list[list[int]] | None = None
        self._whole_keys = self._whole_values = None
        self._tail_keys = self._tail_values = None
        self._tail_length = 0
        self.unattended = False  # Rows were returned, and the model's attention has not come with them yet.
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None  # What update() returned last.
        self.has_weights = True  # Whether the model's own function returns attention weights, as far as is known.
        self._replaying = False

    # ---------------------------------------------------------------- what transformers asks

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True
        if self.heap:
            self.keys = torch.empty(0, dtype=self.dtype, device=self.device)
            self.values = torch.empty(0, dtype=self.dtype, device=self.device)

    @torch.compiler.disable  # A compiled model leaves its graph here.
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """[b, Hkv, q, D] twice; returns what attention reads, marked as this layer's."""
        cache = self._cache()
        if cache is not None:
            cache._rows_come(self)
        if self._replaying:
            return self._replayed(key_states, value_states)
        if not self.is_initialized:
            self.heap = cache is None or not cache._accepts(self, key_states, value_states)
            self.lazy_initialization(key_states, value_states)
            if not self.heap:
                self._whole_keys, self._whole_values = cache._storage_of(self.ordinal)
        if self.heap:
            return super().update(key_states, value_states, *args, **kwargs)
        if key_states.shape[0] != 1:
            raise ValueError(
                f"a batch of {key_states.shape[0]} came to a cache that has one sequence: start a new cache, "
                "or give each sequence a copy.deepcopy of this one"
            )
        if self.prefix is not None:
            return self._append_tail(key_states, value_states)
        return self._append_whole(key_states, value_states)

    def get_seq_length(self, *args) -> int:
        length = super().get_seq_length() if self.heap else self.length
        return length - 1 if self._replaying else length

    def get_mask_sizes(self, query_length) -> tuple[int, int]:
        """Logical sizes. transformers 4 passes cache positions where 5 passes a length."""
        if isinstance(query_length, torch.Tensor):
            query_length = query_length.shape[0]
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # transformers 4
        return -1

    def reset(self) -> None:
        self._forget()

    def to_remove(self, crop: int) -> int:
        """Tokens that crop(crop) takes away: -crop, or in transformers 4 what is beyond a length of `crop`."""
        length = self.get_seq_length()
        return min(-crop, length) if crop <= 0 else max(0, length - crop)

    @property
    def can_replay(self) -> bool:
        return self.prefix is not None and self._tail_length == 0

    def can_crop(self, tokens: int) -> bool:
        return self.prefix is None or tokens <= self._tail_length

    def check_crop(self, crop: int) -> None:
        remove = self.to_remove(crop)
        if not self.can_crop(remove):
            raise ValueError(
                f"cannot crop {remove} tokens: layer {self.index} is compressed, and only the {self._tail_length} "
                "tokens after its prompt can be taken away: reset() the cache and run the shorter text"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """See Cache.crop()."""
        self.check_crop(tokens_to_remove)
        remove = self.to_remove(tokens_to_remove)
        if remove == 0:
            return
        if self.heap:
            self.keys, self.values = self.keys[..., :-remove, :], self.values[..., :-remove, :]
            return
        self.length -= remove
        if self.prefix is not None:
            self._tail_length -= remove
            self._show_tail()
        else:
            self._show_whole()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._need_heap("reorder_cache")
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._need_heap("batch_repeat_interleave")
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._need_heap("batch_select_indices")
        super().batch_select_indices(indices)

    # ---------------------------------------------------------------- attention

    def attend(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        """In place of the model's own attention function (interface.py); returns what that returns."""
        given, self.unattended = self._given if self.unattended else None, False
        if self.prefix is not None:
            return self._attend_kept(call, given), None
        cache = self._cache()
        if cache is not None and cache._in_prefill:
            cache._before_attention(self, call, given)
        result = call.run()
        if cache is not None and cache._in_prefill:
            cache._after_attention(self, call, *result)
        return result

    def unattended_reason(self, model: torch.nn.Module | None) -> str:
        reason = f"{type(model).__name__} does not attend to the cache's rows through transformers' attention interface"
        return reason if self.prefix is None else f"layer {self.index} is compressed, and {reason}: start a new cache"

    def _attend_kept(self, call: Call, given: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """[1, q, Hq, D]. Raises ValueError when attention is wanted that the kept rows cannot give."""
        reason = not_understood(call, self.length) or changed(call, given)
        if reason is None and self.has_weights and wants_weights(call):
            reason = "output_attentions=True, and weights over the tokens that were dropped do not exist"
        if reason is not None:
            raise ValueError(f"layer {self.index} is compressed: {reason}")
        tail = call.key.shape[2]
        seen = tail_mask(call.mask, self.length - tail, tail)
        rows = (self.prefix, call.key, call.value)
        out = two_part_attention(call.query, *rows, call.scaling, call.softcap, seen, call.sinks)
        return out.transpose(1, 2).contiguous()

    # ---------------------------------------------------------------- the cache's side

    def adopt(self, prefix: Prefix) -> None:
        """From now on the prompt is these rows. The logical length stays."""
        self.prefix = prefix
        self._whole_keys = self._whole_values = None
        self._tail_length = 0
        self.keys = self.values = self._given = None

    def restore(self, rows: Prefix | tuple[torch.Tensor, torch.Tensor], tokens: int, positions: list[list[int]] | None) -> None:
        """Takes the rows of a prompt that was saved: a prefix, or K and V of every token, [1, Hkv, tokens, D]."""
        self._forget()
        compressed = isinstance(rows, Prefix)
        example = rows.head_keys(0) if compressed else rows[0]
        self.dtype, self.device = example.dtype, example.device
        self.is_initialized = True
        self.positions = positions
        if compressed:
            self.adopt(rows)
            self.length = tokens
        else:
            self.heap = True
            self.keys, self.values = rows

    def replay(self, on: bool = True) -> None:
        """The next forward asks the prompt's last token again: its query is new, its row stays as it is."""
        self._replaying = on

    @property
    def replays(self) -> bool:
        return self._replaying

    def kept_lengths(self, prompt_tokens: int, kv_heads: int) -> list[int]:
        return list(self.prefix.lengths) if self.prefix is not None else [prompt_tokens] * kv_heads

    def copied(self, cache) -> "DkvLayer":
        """For a copy of the cache. The kept rows of a compressed prompt are shared, for they do not change."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._cache = weakref.ref(cache)
        twin._replaying = twin.unattended = False
        twin._given = None
        if self.prefix is None:
            twin._own_rows()
        elif self._tail_keys is not None:
            twin._tail_keys = self._grown(self._tail_keys, self._tail_keys, 0)
            twin._tail_values = self._grown(self._tail_values, self._tail_values, 0)
            twin._show_tail()
        return twin

    def to_heap(self) -> None:
        """Becomes a DynamicLayer with the same rows."""
        if self.heap or self.prefix is not None:
            return
        self._own_rows()

    def _own_rows(self) -> None:
        self.heap = self.is_initialized
        self._whole_keys = self._whole_values = self._given = None
        if self.keys is not None:
            self.keys, self.values = self.keys.detach().clone(), self.values.detach().clone()

    # ---------------------------------------------------------------- helpers

    def _append_whole(self, key_states: torch.Tensor, value_states: torch.Tensor):
        cache = self._cache()
        if cache is not None:
            cache._before_rows()
        end = self.length + key_states.shape[2]
        if cache is None or (not self.heap and end > self._whole_keys.shape[2]):
            self.to_heap()  # Longer than anything that was foreseen: the storage has no more rows.
        if self.heap:
            return super().update(key_states, value_states)
        self._whole_keys[:, :, self.length : end].copy_(key_states.detach())
        self._whole_values[:, :, self.length : end].copy_(value_states.detach())
        self.length = end
        self._show_whole()
        return self._give(_recorded(self.keys, key_states), _recorded(self.values, value_states))

    def _append_tail(self, key_states: torch.Tensor, value_states: torch.Tensor):
        end = self._tail_length + key_states.shape[2]
        if self._tail_keys is None or end > self._tail_keys.shape[2]:
            self._tail_keys = self._grown(self._tail_keys, key_states, end)
            self._tail_values = self._grown(self._tail_values, value_states, end)
        self._tail_keys[:, :, self._tail_length : end].copy_(key_states.detach())
        self._tail_values[:, :, self._tail_length : end].copy_(value_states.detach())
        self._tail_length = end
        self.length += key_states.shape[2]
        self._show_tail()
        return self._give(_recorded(self.keys, key_states), _recorded(self.values, value_states))

    def _replayed(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if key_states.shape[2] != 1:
            raise ValueError(f"{key_states.shape[2]} tokens came where the prompt's last one is asked again")
        self._replaying = False
        if self.heap:
            return self.keys, self.values
        return self._give(key_states[:, :, :0], value_states[:, :, :0])

    def _grown(self, tail: torch.Tensor | None, like: torch.Tensor, rows: int) -> torch.Tensor:
        capacity = _TAIL_ROWS if tail is None else 2 * tail.shape[2]
        batch, heads, _, dim = like.shape
        with torch.inference_mode(False):  # A later call may be in another mode.
            grown = torch.empty(batch, heads, max(rows, capacity), dim, dtype=self.dtype, device=self.device)
        if tail is not None:
            grown[:, :, : self._tail_length] = tail[:, :, : self._tail_length]
        return grown

    def _show_whole(self) -> None:
        self.keys = self._whole_keys[:, :, : self.length]
        self.values = self._whole_values[:, :, : self.length]

    def _show_tail(self) -> None:
        self.keys = self._tail_keys[:, :, : self._tail_length]
        self.values = self._tail_values[:, :, : self._tail_length]

    def _give(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.unattended, self._given = True, (mark(keys, self), values)
        return self._given

    def _need_heap(self, operation: str) -> None:
        if self.prefix is not None:
            raise RuntimeError(f"{operation} is not possible: layer {self.index} is compressed (batch 1 only)")
        self.to_heap()


class _WithoutGradient(torch.autograd.Function):
    """The cache's rows, where `states` wants a gradient: a backward pass ends here, instead of going on without it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return rows.data  # Rows written later must not count as changes of these.

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(
            "a dkv cache keeps no gradients of K and V: run the backward pass without one, or with a DynamicCache"
        )


def _recorded(rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return _WithoutGradient.apply(rows, states) if torch.is_grad_enabled() and states.requires_grad else rows
