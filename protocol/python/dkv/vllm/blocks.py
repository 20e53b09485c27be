"""The arithmetic of shortened block tables.

A prompt of n tokens in blocks of b has full = n // b whole blocks. A layer keeps c tokens, c ≡ n (mod b), so it drops
whole blocks' worth of them, and what is left ends at n's own offset within a block. The block of the first decode
token stays where it is, at index `full` of the table, and new tokens go to the slots that vLLM computes from logical
positions. Only attention must know: it reads entries 0 … keep-1, then full and those behind it, and a length that is
shorter by (full - keep) blocks.
"""

from __future__ import annotations

import torch


def rounded(count: int, tokens: int, block: int) -> int:
    """The least number of kept tokens, at least `count`, that drops whole blocks only."""
    return tokens - (tokens - count) // block * block


def kept_blocks(count: int, tokens: int, block: int) -> int:
    """How many whole blocks stay of a prompt that keeps `count` tokens, a rounded() number."""
    return tokens // block - (tokens - count) // block


def filled_pages(counts: list[int], blocks: int, tokens: int, block: int) -> list[int]:
    """`counts` of each KV head, rounded() numbers, with more rows until they fill these blocks: their memory is spent
    anyway. The heads that keep the fewest get them."""
    counts = list(counts)
    for _ in range(blocks * len(counts) - sum(kept_blocks(count, tokens, block) for count in counts)):
        counts[counts.index(min(counts))] += block
    return counts


class Shortened:
    """The compacted requests of a group, found by their first physical block.

    A metadata builder is not told which request a row of the batch is. Without prefix caching the first block is the
    request's own while it runs, and a lookup by it stays on the device: it needs no synchronization and can be
    replayed by a CUDA graph. An entry that is out of date does no harm: it counts only for a row whose computed tokens
    include the prompt, which those of a new owner do not in its first step, and forget() runs before its second.
    """

    def __init__(self, blocks: int, device: torch.device | str = "cpu"):
        self.keep = torch.full((blocks,), -1, dtype=torch.int32, device=device)
        self.full = torch.zeros(blocks, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(blocks, dtype=torch.int32, device=device)
        self.heads: dict[int, Pages] = {}  # Requests whose KV heads keep unequal numbers; `keep` is -1 for them.
        self._alike: set[int] = set()  # First blocks of the others: known without asking the device.

    def __len__(self) -> int:
        return len(self._alike) + len(self.heads)

    def put(self, first: int, keep: int, full: int, tokens: int) -> None:
        self.forget(first)
        self.keep[first], self.full[first], self.tokens[first] = keep, full, tokens
        self._alike.add(first)

    def put_heads(self, first: int, pages: "Pages") -> None:
        self.forget(first)
        self.heads[first] = pages

    def forget(self, first: int) -> None:
        self.heads.pop(first, None)
        if first in self._alike:
            self._alike.remove(first)
            self.keep[first] = -1

    def shorten(
        self, table: torch.Tensor, lengths: torch.Tensor, computed: torch.Tensor, block: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New block table [rows, width] and lengths [rows] of a batch. `computed`: tokens before this step's.

        Entries behind the last block that is read are null blocks: kernels may load a tile across the end.
        """
        first = table[:, 0].long()
        keep, full, tokens = self.keep[first], self.full[first], self.tokens[first]
        gap = torch.where((keep >= 0) & (computed >= tokens), full - keep, 0)
        short = lengths - gap * block
        column = torch.arange(table.shape[1], dtype=torch.int32, device=table.device)
        source = column + torch.where(column >= keep[:, None], gap[:, None], 0)
        moved = table.gather(1, source.clamp(max=table.shape[1] - 1).long())
        return torch.where(column * block < short[:, None], moved, 0), short


class Pages:
    """A compacted request whose KV heads keep unequal numbers of tokens.

    In a head-major block the part of one head is contiguous: block · heads + head numbers such pages. The full pages of
    all heads lie one head after another in the request's first blocks; the last, partial one of each head stays in
    block `full` at its usual place.
    """

    def __init__(self, row: list[int], counts: list[int], tokens: int, block: int):
        heads = len(counts)
        self.tokens, self.full = tokens, tokens // block
        self.keep = [kept_blocks(count, tokens, block) for count in counts]
        self.blocks = -(-sum(self.keep) // heads)  # Of the request's own that hold them.
        self.rows: list[torch.Tensor] = []  # Per head: its page numbers.
        begin = 0
        for keep in self.keep:
            pages = [row[at // heads] * heads + at % heads for at in range(begin, begin + keep)]
            self.rows.append(torch.tensor(pages, dtype=torch.int32))
            begin += keep


def by_head(
    table: torch.Tensor, lengths: torch.Tensor, computed: torch.Tensor, block: int, heads: int, known: dict[int, Pages]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A page table [rows · heads, width] and lengths [rows · heads] in which every KV head is a sequence of its own."""
    pages = table[:, None, :] * heads + torch.arange(heads, dtype=torch.int32)[None, :, None]
    short = lengths[:, None].repeat(1, heads)
    for row, first in enumerate(table[:, 0].tolist()):
        entry = known.get(first)
        if entry is None or int(computed[row]) < entry.tokens:
            continue
        for head, (keep, own) in enumerate(zip(entry.keep, entry.rows)):
            rest = pages[row, head, entry.full :].clone()
            pages[row, head, :keep] = own
            pages[row, head, keep : keep + len(rest)] = rest
            short[row, head] -= (entry.full - keep) * block
    return pages.flatten(0, 1).to(torch.int32).contiguous(), short.flatten().to(torch.int32)
