"""dkv attached to a model with sliding windows (iSWA): its full layers are compressed, the others stay as they are."""

from __future__ import annotations

import pytest
import sliding_model
import torch
from conftest import ROOT
from llama_process import OLDER, Llama, dkvd  # noqa: F401
from masked import Masked, distance
from sliding_model import FULL, KV_HEADS, LAYERS, TOKENS

import dkv.hf
from dkv.hf import gemma3
from dkv.hf.weights import WeightsNotFound

pytestmark = [pytest.mark.model, pytest.mark.e2e]

F32 = {"keys": "f32", "values": "f32"}
PROMPT, BEHIND = [int(token) for token in torch.randint(3, TOKENS, (700,), generator=torch.Generator().manual_seed(5))], [5, 9, 4]
HELD = 740  # Tokens of another sequence: the next sliding cells begin near the cache's end, and go on at its begin.
POLICY = {"name": "snapkv", "capacity": 128}


@pytest.fixture(scope="module")
def model():
    return sliding_model.make()


@pytest.fixture(scope="module")
def reference(model):
    return Masked(model)


@pytest.fixture(scope="module")
def llama(dkvd, model, tmp_path_factory):  # noqa: F811
    running = Llama(str(sliding_model.write(model, tmp_path_factory.mktemp("model") / "tiny.gguf")), dkvd.endpoint)
    yield running
    running.close()
    running.stop()


def kept_positions(llama: Llama) -> dict[int, list[list[int]]]:
    return dict(zip(FULL, llama.positions(layers=[*FULL], heads=KV_HEADS)["positions"], strict=True))


@pytest.mark.parametrize(
    ("context", "smaller"),
    [
        pytest.param(F32, False, id="f32", marks=pytest.mark.sample),
        pytest.param({**F32, "flash": False}, True, id="f32, transposed, smaller"),
        pytest.param({**F32, "swa_full": True}, True, id="a whole sliding cache, smaller"),
        pytest.param({}, False, id="f16"),
        pytest.param({"keys": "q8_0", "values": "q8_0"}, True, id="q8_0, smaller"),
        pytest.param({**F32, "sequences": 2, "sequence": 1, "unified": False, "cells": 1536}, False, id="another sequence"),
    ],
)
def test_logits_are_those_of_a_masked_computation_in_the_full_layers(llama, reference, context, smaller):
    whole = reference(PROMPT, BEHIND, None)
    context, place = {"cells": 768, **context}, {"sequence": context.get("sequence", 0)}
    llama.open(plain=True, **context)
    llama.prefill(tokens=PROMPT, chunk=400, **place)
    own_error = distance(llama.go_on(tokens=BEHIND, position=700, logits=True, **place)["logits"], whole)
    llama.open(**context)
    llama.prefill(tokens=PROMPT, chunk=400, **place)

    report = llama.compress(policy=POLICY, **({**context, "room": 256} if smaller else {}))

    if OLDER and context.get("keys") == "q8_0":
        assert "this llama.cpp does not say how they are rotated: set type_k" in report["reason"]
        return
    assert (report["compressed"], report["cells"], report["layers"], report["layers_left_alone"]) == (
        True, 128, len(FULL), LAYERS - len(FULL),
    ), report  # fmt: skip
    kept = kept_positions(llama)
    assert len({tuple(head) for layer in kept.values() for head in layer}) == len(FULL) * KV_HEADS
    seen = llama.go_on(tokens=BEHIND, position=700, logits=True, **place)["logits"]
    expected = reference(PROMPT, BEHIND, kept)
    assert distance(seen, expected) < 4 * own_error  # What llama.cpp's own arithmetic differs by.
    assert distance(seen, expected) < distance(whole, expected) / 5


def test_a_smaller_context_may_hold_another_sequence(llama, reference):
    """The sliding cells that it takes lie around that sequence's."""
    other = (PROMPT[::-1] + PROMPT)[:HELD]
    llama.open(cells=768, sequences=2, **F32)
    llama.prefill(tokens=PROMPT, chunk=400)

    report = llama.compress(policy=POLICY, room=1536, sequences=2, held=other, **F32)

    assert (report["compressed"], report["cells"]) == (True, 128), report
    kept = kept_positions(llama)
    seen = llama.go_on(tokens=BEHIND, position=700, logits=True)["logits"]
    assert distance(seen, reference(PROMPT, BEHIND, kept)) < distance(seen, reference(PROMPT, BEHIND, None)) / 5
    seen = llama.go_on(tokens=BEHIND, position=HELD, logits=True, sequence=1)["logits"]
    assert distance(seen, reference(other, BEHIND, None)) < distance(seen, reference(PROMPT, BEHIND, None)) / 100


def test_kept_tokens_are_those_of_the_hugging_face_adapter(llama, model, dkvd):  # noqa: F811
    llama.open(cells=768, **F32)
    llama.prefill(tokens=PROMPT)
    assert llama.compress(policy=POLICY)["compressed"]

    model.set_attn_implementation("sdpa")
    cache = dkv.hf.Cache(model, policy="snapkv", capacity=128, endpoint=dkvd.endpoint)
    with torch.no_grad():
        model(torch.tensor([PROMPT]), past_key_values=cache, logits_to_keep=1)

    mine = {(la, h, at) for la, heads in kept_positions(llama).items() for h, row in enumerate(heads) for at in row}
    theirs = {(la, h, at) for la in FULL for h, row in enumerate(cache.kept_positions(la)) for at in row}
    assert len(mine) == len(theirs) == len(FULL) * KV_HEADS * 128
    assert len(mine & theirs) / len(mine) >= 0.99


def test_a_sliding_layer_has_no_kept_positions(llama):
    llama.open(cells=768)
    llama.prefill(tokens=PROMPT)
    assert llama.compress(policy=POLICY)["compressed"]

    assert "no kept positions of layer 4" in llama.positions(layers=[4], heads=1)["error"]


def test_gemma_3_270m_finds_a_word_beyond_its_window_in_a_compressed_cache(dkvd, tmp_path):  # noqa: F811
    try:
        gemma3.part_paths()
    except WeightsNotFound as missing:  # Not installed by default: 240 MB, and another licence.
        pytest.skip(str(missing))
    gemma3.join(gemma3.part_paths(), tmp_path / "gemma.gguf")
    llama = Llama(str(tmp_path / "gemma.gguf"), dkvd.endpoint)
    page = (ROOT / "LICENSE").read_text().split()
    text = " ".join(["The secret word is pelican.", *page[:900]])
    tokens = llama.tokens(text=text + "\n\nQuestion: what is the secret word?\nAnswer: the secret word is")["tokens"]
    assert len(tokens) > 1100  # The window is 512.

    said = {}
    for capacity in (None, 256):
        llama.open(cells=2048, plain=capacity is None)
        llama.prefill(tokens=tokens[:-1], chunk=512)
        if capacity:
            report = llama.compress(policy={"name": "snapkv", "capacity": capacity}, room=1024)
            assert (report["compressed"], report["layers"], report["layers_left_alone"]) == (True, 3, 15), report
        said[capacity] = llama.go_on(tokens=tokens[-1:], position=len(tokens) - 1, count=4)["text"]

    assert "pelican" in said[None] and "pelican" in said[256], said
    llama.close()
    llama.stop()
