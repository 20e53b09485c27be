"""Prefills that are kept on disk for later runs."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch
from conftest import make_tiny_llama

from dkv_lab.probe import Probe
from dkv_lab.store import PrefillStore

TOKENS = torch.randint(2, 512, (60,), generator=torch.Generator().manual_seed(5)).tolist()


class CountingProbe(Probe):
    """The real probe, which counts how often it has to compute."""

    prefills = 0

    def prefill(self, *args, **kwargs):
        self.prefills += 1
        return super().prefill(*args, **kwargs)


@pytest.fixture
def probe():
    return CountingProbe(make_tiny_llama(), window=8)


class Trap:
    """A pickle that shows that it was read."""

    opened = False

    def __reduce__(self):
        return (setattr, (Trap, "opened", True))


def test_a_kept_prefill_is_the_computed_one_to_the_bit(probe, tmp_path):
    computed, continued = PrefillStore(probe, "tiny", tmp_path).prefill(TOKENS, accumulate=True, greedy=5)

    kept, again = PrefillStore(probe, "tiny", tmp_path).prefill(TOKENS, accumulate=True, greedy=3)

    assert probe.prefills == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    assert (kept.tokens, kept.window, kept.compressed) == (computed.tokens, computed.window, computed.compressed)
    assert torch.equal(kept.logits, computed.logits) and torch.equal(again, continued[:3])
    for mine, theirs in zip(kept.layers, computed.layers):
        assert (mine.scale, mine.softcap, mine.sliding) == (theirs.scale, theirs.softcap, theirs.sliding)
        for name in ("keys", "values", "queries", "accumulated"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_what_was_not_kept_is_computed(probe, tmp_path):
    store = PrefillStore(probe, "tiny", tmp_path)
    store.prefill(TOKENS)
    store.prefill(TOKENS)
    assert probe.prefills == 1

    prompt, continued = store.prefill(TOKENS, accumulate=True, greedy=4)

    assert probe.prefills == 2
    assert prompt.layers[0].accumulated is not None and continued.numel() == 4
    store.prefill(TOKENS[:-1])
    assert probe.prefills == 3


def test_a_pickle_of_an_earlier_version_is_not_read(probe, tmp_path, caplog):
    (tmp_path / "0123456789abcdef01234567.pt").write_bytes(pickle.dumps(Trap()))

    with caplog.at_level(logging.WARNING, "dkv_lab"):
        PrefillStore(probe, "tiny", tmp_path).prefill(TOKENS)

    assert not Trap.opened and probe.prefills == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 files *.pt of an earlier dkv are not read, because reading a pickle can run code: "
        "their prompts are computed anew; delete the files"
    ]


@pytest.mark.parametrize("damage", [lambda data: pickle.dumps(Trap()), lambda data: data[:-100], lambda data: b""])
def test_a_damaged_file_is_computed_anew(probe, tmp_path, caplog, damage):
    store = PrefillStore(probe, "tiny", tmp_path)
    computed, _ = store.prefill(TOKENS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))

    with caplog.at_level(logging.WARNING, "dkv_lab"):
        prompt, _ = store.prefill(TOKENS)

    assert not Trap.opened and probe.prefills == 2
    assert torch.equal(prompt.logits, computed.logits)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path} is not a kept prefill (")
    store.prefill(TOKENS)
    assert probe.prefills == 2
