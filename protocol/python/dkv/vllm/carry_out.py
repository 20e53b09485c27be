"""A plan carried out: the kept rows move to the request's first blocks, one write per layer or KV head."""

from __future__ import annotations

import dataclasses

import torch

from .blocks import Pages, Shortened, filled_pages, kept_blocks, rounded
from .messages import Dropped, Prefill
from .prompt import Prompt


@dataclasses.dataclass
class Group:
    """Layers that share a block table."""

    index: int  # In vLLM's list of groups.
    block: int  # Tokens of a block.
    layers: list[tuple[int, torch.nn.Module]]  # Ordinal among the compressible layers, and the layer.
    shortened: Shortened
    heads_apart: bool

    def bytes_of(self, dropped: Dropped) -> int:
        """Of the blocks that this rank does not read any more: a block is a page of each layer of the group."""
        pages = [layer.kv_cache[0] for _, layer in self.layers]
        block_bytes = sum(page.numel() * page.element_size() for page in pages)
        return (dropped.full[self.index] - dropped.keep[self.index]) * block_bytes


def whole(prompt: Prompt | Prefill, groups: list[Group]) -> Dropped:
    """Nothing is dropped."""
    full = [0] * len(prompt.first)
    for group in groups:
        full[group.index] = prompt.tokens // group.block
    return Dropped(full, list(full))


def wanted(prompt: Prompt, groups: list[Group]) -> Dropped:
    """What the plan of this rank would drop."""
    dropped = whole(prompt, groups)
    for group in groups:
        counts = _counts(prompt, group)
        pages = sum(kept_blocks(count, prompt.tokens, group.block) for count in counts)
        dropped.keep[group.index] = -(-pages // len(counts))
    return dropped


def carry_out(prompt: Prompt, groups: list[Group]) -> tuple[Dropped, list, Exception | None]:
    """Writes the kept rows, and makes the groups' builders read them from the next step on.

    Returns what can be freed, and the positions that each layer and KV head has now: the sidecar's, filled up to the
    `agreed` blocks of the group. Where there is no memory for a group's rows, that group and those behind it stay
    whole, and the reason is the third.
    """
    dropped, positions = whole(prompt, groups), [None] * len(prompt.kept)
    for group in groups:
        try:
            counts = filled_pages(_counts(prompt, group), prompt.agreed[group.index], prompt.tokens, group.block)
            gathered = [_gather(prompt, ordinal, counts) for ordinal, _ in group.layers]
        except Exception as error:
            return dropped, positions, error
        for (ordinal, _), (kept, _) in zip(group.layers, gathered):
            positions[ordinal] = kept
        rows = [each for _, each in gathered]
        dropped.keep[group.index] = _write(prompt, group, counts, rows)
    return dropped, positions, None


def _gather(prompt: Prompt, ordinal: int, counts: list[int]) -> tuple[list[torch.Tensor], list]:
    """Positions, and (keys, values), of each KV head of a layer."""
    kept = [
        _filled(torch.tensor(ids, dtype=torch.long), count, prompt.tokens)
        for ids, count in zip(prompt.kept[ordinal], counts)
    ]
    return kept, [prompt.rows.gather(ordinal, head, ids, prompt.blocks) for head, ids in enumerate(kept)]


def _write(prompt: Prompt, group: Group, counts: list[int], layers: list[list]) -> int:
    """Moves a group's rows. Returns how many of the first blocks hold them."""
    row, first, full = prompt.blocks[group.index], prompt.first[group.index], prompt.tokens // group.block
    if len(set(counts)) == 1:
        keep = kept_blocks(counts[0], prompt.tokens, group.block)
        slots = _slots(row[:keep] + row[full : full + 1], counts[0], group.block)
        for (_, layer), rows in zip(group.layers, layers):
            keys, values = (torch.stack(each, 1) for each in zip(*rows))
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, slots.to(keys.device))
        group.shortened.put(first, keep, full, prompt.tokens)
        return keep
    pages = Pages(row, counts, prompt.tokens, group.block)
    for (_, layer), rows in zip(group.layers, layers):
        _write_heads(layer, rows, pages, row, group.block)
    group.shortened.put_heads(first, pages)
    return pages.blocks


def _counts(prompt: Prompt, group: Group) -> list[int]:
    """Rows of each KV head, the same in all layers of the group: the largest, rounded up to whole blocks."""
    kept = [prompt.kept[ordinal] for ordinal, _ in group.layers]
    most = [max(len(layer[head]) for layer in kept) for head in range(len(kept[0]))]
    if not group.heads_apart:
        most = [max(most)] * len(most)
    return [rounded(count, prompt.tokens, group.block) for count in most]


def _filled(ids: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    """`ids` and the newest tokens that are not among them, `count` in all: their memory is spent anyway."""
    free = torch.ones(tokens, dtype=torch.bool)
    free[ids] = False
    more = count - len(ids)
    return torch.cat([ids, free.nonzero().flatten()[-more:]]).sort().values if more > 0 else ids


def _slots(blocks: list[int], count: int, block: int) -> torch.Tensor:
    """Where `count` rows lie one after another in these blocks."""
    at = torch.arange(count)
    return torch.tensor([*blocks, 0])[at // block] * block + at % block


def _write_heads(layer, rows, pages: Pages, row: list[int], block: int) -> None:
    cache, heads = layer.kv_cache, len(rows)
    single = cache.view(cache.shape[0] * heads, 1, block, cache.shape[3])
    tail = row[pages.full] * heads if pages.full < len(row) else 0  # Nothing lies there when n mod b is 0.
    for head, (keys, values) in enumerate(rows):
        slots = _slots([*pages.rows[head].tolist(), tail + head], len(keys), block)
        layer.impl.do_kv_cache_update(layer, keys[:, None].contiguous(), values[:, None].contiguous(), single, slots)
