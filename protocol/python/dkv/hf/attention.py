"""Attention over a compressed layer.

It has two parts, the kept rows of the prompt and the tail of tokens that came after it; one softmax runs
over both, and neither is copied. A layer that is whole is attended by the model's own function (interface.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_QUERY_BLOCK = 256  # Bounds the logits in memory when a long text continues a compressed prompt.


@dataclass
class Prefix:
    """The kept rows of one layer's prompt.

    `keys` and `values` are [Hkv, rows, D] when all heads keep equally many, else a list of [rows_h, D].
    """

    lengths: list[int]
    keys: torch.Tensor | list[torch.Tensor]
    values: torch.Tensor | list[torch.Tensor]

    def __post_init__(self):
        # Decode takes them for every token: made once.
        self.keys_transposed = None if self.uniform else [keys.t() for keys in self.keys]
        self.longest = max(self.lengths)

    @property
    def uniform(self) -> bool:
        return isinstance(self.keys, torch.Tensor)

    def head_keys(self, head: int) -> torch.Tensor:
        return self.keys[head]

    def head_values(self, head: int) -> torch.Tensor:
        return self.values[head]


def two_part_attention(
    query: torch.Tensor,
    prefix: Prefix,
    tail_keys: torch.Tensor,
    tail_values: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    tail_mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over prefix and tail with one softmax.

    query       [1, Hq, q, D]    read; the last q tokens, so the last q rows of the tail are theirs
    prefix      all of it seen by every query
    tail_keys   [1, Hkv, t, D]   read, t >= q; likewise tail_values
    tail_mask   [q, t]           bool (True: seen) or additive; None: lower-right causal
    sinks       [Hq]             a logit of each head that takes part in the softmax and has no value (gpt-oss)
    returns     [1, Hq, q, Dv]
    """
    _, q_heads, q_length, head_dim = query.shape
    kv_heads, tail_length = tail_keys.shape[1], tail_keys.shape[2]
    scale = head_dim**-0.5 if scaling is None else scaling
    grouped = query[0].reshape(kv_heads, q_heads // kv_heads, q_length, head_dim)
    bias = _tail_bias(tail_mask, q_length, tail_length, query.device)
    sinks = None if sinks is None else sinks.float().reshape(kv_heads, -1)
    pieces = []
    for begin in range(0, q_length, _QUERY_BLOCK):
        block = grouped[:, :, begin : begin + _QUERY_BLOCK]
        block_bias = None if bias is None else bias[begin : begin + _QUERY_BLOCK]
        if prefix.uniform:
            rows = (prefix.keys, prefix.values, tail_keys[0], tail_values[0])
            pieces.append(_joint_softmax(block, *rows, scale, softcap, block_bias, sinks))
            continue
        if not (torch.is_grad_enabled() and query.requires_grad):
            rows = (tail_keys[0], tail_values[0])
            pieces.append(_ragged_softmax(block, prefix, *rows, scale, softcap, block_bias, sinks))
            continue
        heads = [
            _joint_softmax(
                block[head : head + 1],
                prefix.head_keys(head)[None],
                prefix.head_values(head)[None],
                tail_keys[0, head : head + 1],
                tail_values[0, head : head + 1],
                scale,
                softcap,
                block_bias,
                None if sinks is None else sinks[head : head + 1],
            )
            for head in range(kv_heads)
        ]
        pieces.append(torch.cat(heads))
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    return out.reshape(1, q_heads, q_length, -1)


def lower_right_causal(q_length: int, kv_length: int, device: torch.device) -> torch.Tensor:
    """[q, kv] bool: the last query sees everything, each earlier one a key less."""
    return torch.ones(q_length, kv_length, dtype=torch.bool, device=device).tril(kv_length - q_length)


def _tail_bias(
    mask: torch.Tensor | None, q_length: int, tail_length: int, device: torch.device
) -> torch.Tensor | None:
    """What is added to the tail's logits, [q, t] f32, or None when every query sees the whole tail."""
    if mask is None:
        if q_length == 1:
            return None
        mask = lower_right_causal(q_length, tail_length, device)
    if mask.dtype != torch.bool:
        return mask.float()
    if q_length == 1 and bool(mask.all()):
        return None
    return torch.zeros(mask.shape, device=device).masked_fill_(~mask, float("-inf"))


def _joint_softmax(
    query: torch.Tensor,
    prefix_keys: torch.Tensor,
    prefix_values: torch.Tensor,
    tail_keys: torch.Tensor,
    tail_values: torch.Tensor,
    scale: float,
    softcap: float | None,
    tail_bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[H, g, q, D] against [H, n, D] and [H, t, D]; all heads of equal length; sinks [H, g]. Returns [H, g, q, Dv]."""
    heads, group, q_length, _ = query.shape
    rows = (query * scale).reshape(heads, group * q_length, -1)
    prefix_length = prefix_keys.shape[1]
    end = prefix_length + tail_keys.shape[1]
    columns = end if sinks is None else end + 1
    logits = torch.empty(heads, group * q_length, columns, dtype=torch.float32, device=query.device)
    logits[..., :prefix_length] = rows @ prefix_keys.transpose(1, 2)
    logits[..., prefix_length:end] = rows @ tail_keys.transpose(1, 2)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    by_query = logits.view(heads, group, q_length, columns)
    if tail_bias is not None:
        by_query[..., prefix_length:end] += tail_bias
    if sinks is not None:
        by_query[..., end] = sinks[:, :, None]
    weights = logits.softmax(dim=-1).to(query.dtype)
    out = weights[..., :prefix_length] @ prefix_values
    out = out + weights[..., prefix_length:end] @ tail_values
    return out.reshape(heads, group, q_length, -1)


def _ragged_softmax(
    query: torch.Tensor,
    prefix: Prefix,
    tail_keys: torch.Tensor,
    tail_values: torch.Tensor,
    scale: float,
    softcap: float | None,
    tail_bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As _joint_softmax, over heads of unequal length: [H, g, q, D] against a list of [n_h, D].

    K and V are read where they lie, head by head, and only the logits are padded to the longest head, so
    that everything but the two products with the prefix is one operation for all heads. Writes into views:
    not for autograd.
    """
    heads, group, q_length, _ = query.shape
    rows = (query * scale).reshape(heads, group * q_length, -1)
    tail = tail_keys.shape[1]
    columns = tail + prefix.longest + (0 if sinks is None else 1)
    logits = torch.full((heads, rows.shape[1], columns), float("-inf"), dtype=query.dtype, device=query.device)
    logits.narrow(2, 0, tail).copy_(torch.bmm(rows, tail_keys.transpose(1, 2)))
    of_heads = zip(rows.unbind(), prefix.keys_transposed, logits.unbind(), prefix.lengths)
    for row, keys, logit, length in of_heads:
        torch.mm(row, keys, out=logit.narrow(1, tail, length))
    if query.dtype != torch.float32:
        logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
        for head, length in enumerate(prefix.lengths):
            logits[head, :, tail + length :] = float("-inf")  # A cap would make it a number.
    by_query = logits.view(heads, group, q_length, columns)
    if tail_bias is not None:
        by_query[..., :tail] += tail_bias
    if sinks is not None:
        by_query[..., -1] = sinks[:, :, None]
    weights = logits.softmax(dim=-1).to(query.dtype)
    out = torch.bmm(weights.narrow(2, 0, tail), tail_values)
    for head, weight, values, length in zip(out.unbind(), weights.unbind(), prefix.values, prefix.lengths):
        head.addmm_(weight.narrow(1, tail, length), values)
    return out.reshape(heads, group, q_length, -1)
