"""SmolLM2-135M through a real dkvd: its text, its budgets, its bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_cache import greedy, logits_of_masked_model, step_by_step

import dkv.hf

pytestmark = [pytest.mark.model, pytest.mark.e2e]

POLICIES = ["streamingllm", "snapkv", "pyramidkv", "dynamickv"]
LAYERS, KV_HEADS, HEAD_DIM = 30, 3, 64


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(4, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(smollm2):
    return smollm2[0]


@pytest.fixture
def document(smollm2):
    """The first `count` tokens of the licence and the design, as an instruction."""
    tokenizer = smollm2[1]
    text = "\n\n".join((ROOT / name).read_text() for name in ("LICENSE", "docs/ARCHITECTURE.md", "docs/POLICIES.md"))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def tokens(count: int) -> torch.Tensor:
        assert ids.shape[1] >= count
        return ids[:, :count]

    return tokens


def prefill(model, tokens, cache) -> None:
    with torch.no_grad():
        model(tokens, past_key_values=cache, logits_to_keep=1)


def test_the_tokenizer_splits_digits_and_knows_its_end(smollm2):
    tokenizer = smollm2[1]

    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2024")["input_ids"]) == ["in", "Ġ", "2", "0", "2", "4"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    for text in ("Grüße, 世界! \n\t x", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_answers(smollm2):
    model, tokenizer = smollm2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)

    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])


def test_fullkv_is_token_for_token_the_text_of_plain_transformers(model, document, sidecar):
    tokens = document(800)
    model.set_attn_implementation("sdpa")
    expected = greedy(model, tokens, 32)

    cache = dkv.hf.Cache(model, policy="fullkv", endpoint=sidecar.endpoint)
    out = greedy(model, tokens, 32, past_key_values=cache)

    assert out == expected
    assert cache.report().failure is None
    assert cache.report().kept_per_layer == [800] * LAYERS


@pytest.mark.parametrize("policy", POLICIES)
def test_the_budget_is_thirty_times_the_capacity(model, document, sidecar, policy):
    cache = dkv.hf.Cache(model, policy=policy, capacity=128, endpoint=sidecar.endpoint, timeout_s=60)

    prefill(model, document(600), cache)

    report = cache.report()
    assert report.compressed, report.failure
    for head in range(KV_HEADS):
        assert sum(layer[head] for layer in report.kept_per_head) == LAYERS * 128
    assert len(report.mass_kept_per_layer) == LAYERS


@pytest.mark.parametrize("policy", ["dynamickv", pytest.param("streamingllm", marks=pytest.mark.long)])
def test_compressed_decode_is_plain_attention_masked_to_the_kept_positions(model, document, sidecar, policy):
    tokens = document(408)
    cache = dkv.hf.Cache(
        model, policy=policy, capacity=96, endpoint=sidecar.endpoint, prompt_tokens=400, timeout_s=60
    )

    logits = step_by_step(model, cache, tokens, 400)

    assert cache.report().compressed, cache.report().failure
    expected = logits_of_masked_model(model, tokens, cache, 400)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_a_long_prompt_gives_its_bytes_back(smollm2, sidecar):
    dropped = LAYERS * KV_HEADS * (1000 - 256) * 2 * HEAD_DIM * 4

    def run(*policy: str) -> dict:
        script = Path(__file__).with_name("memory_process.py")
        done = subprocess.run(
            [sys.executable, script, sidecar.endpoint, "1000", *policy], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    full, cut = run("fullkv"), run("dynamickv", "256")

    report = cut["report"]
    assert report["compressed"], report["failure"]
    assert report["bytes_dropped"] == dropped
    assert report["bytes_returned"] >= 0.95 * dropped
    assert full["pss"] - cut["pss"] >= 0.9 * dropped
    assert report["peak_bytes"] < report["bytes_full"] + report["bytes_kept"]
