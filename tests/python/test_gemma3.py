"""Gemma-3-270M through a real dkvd: a hybrid, of whose 18 layers three are compressed."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from test_cache import greedy

import dkv.hf
from dkv.hf import gemma3
from dkv.hf.weights import WeightsNotFound

pytestmark = [pytest.mark.model, pytest.mark.e2e]

FULL_LAYERS, HEAD_DIM = [5, 11, 17], 256


@pytest.fixture(scope="module")
def loaded():
    # Not installed by default: 240 MB, and another licence.
    try:
        gemma3.part_paths()
    except WeightsNotFound as missing:
        pytest.skip(str(missing))
    return gemma3.load()


@pytest.fixture(scope="module")
def tokens(loaded):
    text = (ROOT / "LICENSE").read_text()
    return loaded[1](text, return_tensors="pt")["input_ids"][:, :900]


def test_the_tokenizer_begins_with_bos_and_splits_digits(loaded):
    tokenizer = loaded[1]

    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2024")["input_ids"]) == ["<bos>", "in", "▁", "2", "0", "2", "4"]
    assert tokenizer.eos_token == "<eos>"
    for text in ("Grüße, 世界! \n\t x", "  two spaces\n\n\nthree"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_three_layers_are_full_and_the_others_slide(loaded):
    kinds = loaded[0].config.layer_types

    assert [index for index, kind in enumerate(kinds) if kind == "full_attention"] == FULL_LAYERS
    assert loaded[0].config.sliding_window == 512


def test_fullkv_is_token_for_token_the_text_of_plain_transformers(loaded, tokens, sidecar):
    model = loaded[0]
    model.set_attn_implementation("sdpa")
    expected = greedy(model, tokens, 12)

    cache = dkv.hf.Cache(model, policy="fullkv", endpoint=sidecar.endpoint)

    assert greedy(model, tokens, 12, past_key_values=cache) == expected


def test_dynamickv_cuts_the_full_layers_alone(loaded, tokens, sidecar):
    model = loaded[0]
    cache = dkv.hf.Cache(model, policy="dynamickv", capacity=128, endpoint=sidecar.endpoint)

    text = greedy(model, tokens, 12, past_key_values=cache)

    report = cache.report()
    assert len(text) == tokens.shape[1] + 12
    assert report.compressed
    assert (report.layers, report.layers_left_alone) == (len(FULL_LAYERS), 15)
    assert sum(report.kept_per_layer) == 128 * len(FULL_LAYERS)
    assert report.bytes_kept == 128 * len(FULL_LAYERS) * 2 * HEAD_DIM * 4
    assert [type(layer).__name__ for layer in cache.layers].count("DynamicSlidingWindowLayer") == 15
