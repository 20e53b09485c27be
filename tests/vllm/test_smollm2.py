"""SmolLM2-135M in a real vLLM with a real dkvd, against transformers and the adapter for it."""

from __future__ import annotations

import json

import pytest
import torch
from engine import Engine
from transformers import AutoConfig

import dkv
from dkv.vllm import profile

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


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "dynamickv", "granularity": "layer-head", "capacity": 128},
        {"name": "auto", "capacity": 128},  # With the profile that was made for these weights, which both find by themselves.
    ],
    ids=lambda policy: policy["name"],
)
def test_the_positions_are_those_of_the_adapter_for_transformers(engine, sidecar, model, text, policy):
    import dkv.hf
    from transformers import AutoModelForCausalLM

    prompt, name = text(PROMPT), f"positions {policy['name']}"
    engine.add(name, prompt, 2, policy)
    engine.run()
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    own = {key: value for key, value in policy.items() if key != "name"}

    cache = dkv.hf.Cache(plain, endpoint=sidecar.endpoint, timeout_s=60, policy=policy["name"], **own)
    with torch.no_grad():
        plain(torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1)

    assert cache.report().compressed, cache.report().failure
    same = total = 0
    for mine, theirs in zip(engine.kept[name].planned, cache.layers):
        for head, positions in enumerate(theirs.positions):
            total += len(positions)
            same += len(set(positions) & set(mine[head]))
    assert same / total > 0.995  # Scores that differ in the last bit may swap at the edge of a budget.


def test_an_operators_policy_goes_before_the_profile_that_was_found(engine, sidecar, text):
    engine.add("found", text(PROMPT), 2)

    engine.run()

    shown = json.loads(sidecar.dkv("sessions", "--json").stdout)["sessions"][-1]
    assert shown["policy"]["name"] == "dynamickv" and not shown["policy"].get("profile"), shown["policy"]


def test_a_model_without_a_profile_is_served_all_the_same(tiny):
    class Config:
        model_config = type("ModelConfig", (), {"model": tiny, "hf_config": AutoConfig.from_pretrained(tiny)})

    assert profile.find(Config, 6) is None


def test_a_rank_has_the_weights_of_its_own_heads():
    whole = dkv.Profile("made", [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], 1.0, 0.1)

    assert profile.of_rank(whole, 4, 0, 1) is whole
    assert [profile.of_rank(whole, 4, rank, 2).weights for rank in range(2)] == [
        [[1.0, 2.0], [5.0, 6.0]],
        [[3.0, 4.0], [7.0, 8.0]],
    ]
    assert profile.of_rank(whole, 4, 5, 8).weights == [[3.0], [7.0]]  # Two ranks for each head.
    per_layer = dkv.Profile("made", [[1.0], [2.0]], 1.0, 0.1)
    assert profile.of_rank(per_layer, 4, 1, 2).weights == [[1.0], [2.0]]
