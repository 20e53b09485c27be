"""Async scheduling: a step is scheduled before the one before it has answered."""

from __future__ import annotations

import pytest
from engine import Engine, async_scheduling

TOLERANCE = 1e-4  # Of a logprob, float32.
POOL = 230  # Blocks: about five requests of 400 tokens that are whole.


@pytest.fixture(scope="module")
def engine(tiny, sidecar):
    with async_scheduling():
        running = Engine(
            tiny,
            sidecar.endpoint,
            {"layers_per_group": 2},
            async_scheduling=True,
            max_num_batched_tokens=256,
            num_gpu_blocks_override=POOL,
        )
    yield running
    running.close()


@pytest.mark.sample
def test_requests_are_compacted_while_the_next_step_is_on_its_way(engine, tiny_reference, noise):
    assert type(engine.scheduler).__name__ == "AsyncScheduler"
    begin = engine.free
    prompts = {f"side {at}": noise(400 - 9 * at, seed=at) for at in range(8)}
    for at, (name, prompt) in enumerate(prompts.items()):
        engine.add(name, prompt, 20 + at, "off" if at == 3 else None)

    engine.run()
    engine.add("last", noise(40), 2, "off")  # The workers hear of ends with the next step.
    engine.run()

    assert engine.free == begin and not engine.worker.prompts
    assert set(prompts) - set(engine.kept) == {"side 3"}
    for name, prompt in prompts.items():
        assert tiny_reference.worst(prompt, engine.answers[name], engine.kept.get(name)) < TOLERANCE, name
