"""The arithmetic of shortened block tables, against what it means. On a GPU the same code runs on the device."""

from __future__ import annotations

import pytest
import torch

from dkv.vllm.blocks import Pages, Shortened, by_head, filled_pages, kept_blocks, rounded

BLOCK, WIDTH = 16, 12


def test_what_is_kept_drops_whole_blocks_only():
    for tokens in range(1, 80):
        for count in range(1, tokens + 1):
            kept = rounded(count, tokens, BLOCK)

            assert count <= kept <= tokens and kept - count < BLOCK
            assert (tokens - kept) % BLOCK == 0
            blocks = kept_blocks(kept, tokens, BLOCK)
            assert blocks * BLOCK + tokens % BLOCK == kept


def test_blocks_that_stay_are_filled_by_the_heads_that_keep_the_fewest_rows():
    tokens = 5 * BLOCK + 3
    counts = [3 + pages * BLOCK for pages in (1, 4, 2)]

    assert filled_pages(counts, 3, tokens, BLOCK) == [3 + pages * BLOCK for pages in (3, 4, 2)]
    assert filled_pages(counts, 5, tokens, BLOCK) == [tokens] * 3
    assert filled_pages([19], 1, tokens, BLOCK) == [19]  # A rank that wants what was agreed.


@pytest.fixture
def batch():
    """Three requests, of 75, 40 and 100 tokens, that decode; and a row of padding."""
    table = torch.zeros(4, WIDTH, dtype=torch.int32)
    lengths = torch.tensor([75, 40, 100, 0], dtype=torch.int32)
    for row, first in enumerate((10, 30, 50)):
        count = -(-int(lengths[row]) // BLOCK)
        table[row, :count] = torch.arange(first, first + count)
        table[row, count:] = 99  # vLLM leaves old numbers there.
    return table, lengths, lengths - 1


def test_a_gap_is_cut_out_and_the_length_follows(batch):
    table, lengths, computed = batch
    known = Shortened(128)
    known.put(10, keep=1, full=4, tokens=70)  # 70 = 4 blocks and 6 tokens.

    short, shorter = known.shorten(table, lengths, computed, BLOCK)

    assert shorter.tolist() == [75 - 3 * BLOCK, 40, 100, 0]
    assert short[0].tolist() == [10, 14] + [0] * 10
    assert short[1].tolist() == [30, 31, 32] + [0] * 9
    assert short[2].tolist() == [50, 51, 52, 53, 54, 55, 56] + [0] * 5
    assert table[0, 1] == 11  # vLLM's own table is left as it was.


def test_the_next_owner_of_a_first_block_is_not_shortened_in_its_prefill(batch):
    table, lengths, _ = batch
    known = Shortened(128)
    known.put(10, keep=1, full=4, tokens=70)

    short, shorter = known.shorten(table, lengths, torch.tensor([0, 39, 99, 0]), BLOCK)

    assert shorter.tolist() == lengths.tolist() and short[0, :5].tolist() == table[0, :5].tolist()


def test_a_request_that_was_forgotten_is_read_whole(batch):
    table, lengths, computed = batch
    known = Shortened(128)
    known.put(10, keep=1, full=4, tokens=70)
    assert len(known) == 1
    known.forget(10)
    known.forget(10)

    assert len(known) == 0
    assert known.shorten(table, lengths, computed, BLOCK)[1].tolist() == lengths.tolist()


def test_shortening_is_what_reading_the_kept_rows_means():
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        tokens = int(torch.randint(1, 90, (), generator=generator))
        said = int(torch.randint(1, 40, (), generator=generator))
        kept = rounded(int(torch.randint(1, tokens + 1, (), generator=generator)), tokens, BLOCK)
        count = -(-(tokens + said) // BLOCK)
        blocks = (torch.randperm(126, generator=generator)[:count] + 1).to(torch.int32)
        table = torch.nn.functional.pad(blocks, (0, WIDTH - count))[None]
        keep, full = kept_blocks(kept, tokens, BLOCK), tokens // BLOCK
        known = Shortened(128)
        known.put(int(blocks[0]), keep, full, tokens)

        length = torch.tensor([tokens + said], dtype=torch.int32)
        short, shorter = known.shorten(table, length, length - 1, BLOCK)

        # Slots in the order of attention: the kept rows, then those of the new tokens, where vLLM wrote them.
        read = [int(short[0, at // BLOCK]) * BLOCK + at % BLOCK for at in range(int(shorter))]
        first = [*blocks[:keep].tolist(), *blocks[full : full + 1].tolist()]
        expected = [first[at // BLOCK] * BLOCK + at % BLOCK for at in range(kept)]
        expected += [int(blocks[at // BLOCK]) * BLOCK + at % BLOCK for at in range(tokens, tokens + said)]
        assert read == expected


def test_heads_of_unequal_length_are_packed_into_the_first_blocks(batch):
    table, lengths, computed = batch
    counts = [rounded(each, 70, BLOCK) for each in (10, 70, 30)]  # 22, 70 and 38: one, four and two whole blocks.
    pages = Pages(table[0].tolist(), counts, 70, BLOCK)
    assert pages.keep == [1, 4, 2] and pages.blocks == 3
    numbers = torch.cat(pages.rows).tolist()
    assert numbers == [30, 31, 32, 33, 34, 35, 36]  # Of blocks 10, 11 and 12, three heads each.

    short, shorter = by_head(table, lengths, computed, BLOCK, 3, {10: pages})

    assert shorter[:3].tolist() == [75 - 70 + count for count in counts]
    assert short[0, :2].tolist() == [30, 14 * 3]
    assert short[1, :5].tolist() == [31, 32, 33, 34, 14 * 3 + 1]
    assert short[2, :3].tolist() == [35, 36, 14 * 3 + 2]
    assert shorter[3:9].tolist() == [40, 40, 40, 100, 100, 100]
    assert short[3, :3].tolist() == [90, 93, 96]
