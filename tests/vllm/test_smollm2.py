"""SmolLM2-135M in a real vLLM with a real dkvd, against transformers and the adapter for it."""

from __future__ import annotations

import pytest
import torch
from engine import Engine

TOLERANCE = 1e-4  # Of a logprob, float32.
PROMPT = 400


@pytest.fixture(scope="module")
def engine(model, sidecar):
    running = Engine(model, sidecar.endpoint, {"layers_per_group": 1})
    yield running
    running.close()


@pytest.mark.parametrize("granularity", ["layer", "layer-head"])
def test_what_is_said_is_what_a_masked_model_says(engine, reference, text, granularity):
    prompt, free = text(PROMPT), engine.free
    engine.add(granularity, prompt, dkv={"granularity": granularity, "capacity": 128})

    engine.run()

    kept = engine.kept[granularity]
    assert engine.free == free
    assert any(len(set(layer)) > 1 for layer in kept.lengths()) == (granularity == "layer-head")
    assert reference.worst(prompt, engine.answers[granularity], kept) < TOLERANCE


def test_the_positions_are_those_of_the_adapter_for_transformers(engine, sidecar, model, text):
    import dkv.hf
    from transformers import AutoModelForCausalLM

    prompt = text(PROMPT)
    engine.add("positions", prompt, 2, {"granularity": "layer-head", "capacity": 128})
    engine.run()
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    options = dict(policy="dynamickv", capacity=128, granularity="layer-head", profile=None)

    cache = dkv.hf.Cache(plain, endpoint=sidecar.endpoint, timeout_s=60, **options)
    with torch.no_grad():
        plain(torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1)

    assert cache.report().compressed, cache.report().failure
    same = total = 0
    for mine, theirs in zip(engine.kept["positions"].planned, cache.layers):
        for head, positions in enumerate(theirs.positions):
            total += len(positions)
            same += len(set(positions) & set(mine[head]))
    assert same / total > 0.995  # Scores that differ in the last bit may swap at the edge of a budget.
