"""A small model of random weights in bfloat16: what is computed is rounded at each step, so the tolerance is its own."""

from __future__ import annotations

import pytest
import torch
from engine import Engine
from reference import Reference

TOLERANCE = 0.6  # Of a logprob. Uncompressed, this model says what differs by 0.26.


@pytest.fixture(scope="module")
def engine(tiny, sidecar):
    running = Engine(tiny, sidecar.endpoint, {"layers_per_group": 1}, dtype="bfloat16")
    yield running
    running.close()


@pytest.mark.sample
@pytest.mark.parametrize("granularity", ["layer", "layer-head"])
def test_what_is_said_is_what_a_masked_model_says(engine, tiny, noise, granularity):
    prompt, free = noise(500), engine.free
    engine.add(granularity, prompt, dkv={"granularity": granularity})
    engine.add("off", prompt, dkv="off")

    engine.run()

    assert engine.free == free
    answer, kept = engine.answers[granularity], engine.kept[granularity]
    reference = Reference(tiny, weights=torch.bfloat16)
    assert reference.worst(prompt, engine.answers["off"]) < TOLERANCE
    assert reference.worst(prompt, answer, kept) < TOLERANCE
    assert reference.worst(prompt, answer) > 5 * TOLERANCE  # Against the full cache.
