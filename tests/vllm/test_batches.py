"""Several requests at once: chunked prefill, a pool that is too small, aborts, and no block lost over many requests."""

from __future__ import annotations

import signal

import pytest
from engine import Engine
from processes import waited_for

TOLERANCE = 1e-4  # Of a logprob, float32.
GROUPS, BLOCK = 3, 32
POOL = 230  # Blocks: about five requests of 400 tokens that are whole.


@pytest.fixture(scope="module")
def engine(tiny, sidecar):
    running = Engine(
        tiny,
        sidecar.endpoint,
        {"layers_per_group": 2},
        max_num_batched_tokens=256,
        num_gpu_blocks_override=POOL,
        max_num_seqs=16,
    )
    yield running
    running.close()


@pytest.mark.sample
def test_a_prefill_in_chunks(engine, tiny_reference, noise):
    prompt, begin = noise(700), engine.free
    free, given_back = [], engine.stats["blocks given back"]
    engine.add("chunks", prompt, dkv={"granularity": "layer-head", "capacity": 128})

    engine.run(lambda engine: free.append(engine.free))

    kept = engine.kept["chunks"]
    assert begin > free[0] > free[1] and engine.stats["blocks given back"] > given_back
    for first in range(0, 6, 2):  # The layers of a group share one table, and so each head's count.
        assert kept.lengths()[first] == kept.lengths()[first + 1]
    assert tiny_reference.worst(prompt, engine.answers["chunks"], kept) < TOLERANCE
    assert engine.free == begin


@pytest.mark.sample
def test_a_plan_that_comes_late_is_carried_out_then(engine, sidecar, tiny_reference, noise):
    prompt, seen = noise(500), []
    engine.add("late", prompt)
    engine.step()  # The first chunk.
    (reading,) = engine.worker.prompts.values()
    waited_for(lambda: reading.session, "the session")
    sidecar.process.send_signal(signal.SIGSTOP)

    def go_on(engine):
        seen.append(engine.free)
        if len(seen) == 6:
            sidecar.process.send_signal(signal.SIGCONT)
            waited_for(engine.settled, "the plan")

    engine.run(go_on, wait=False)

    kept = engine.kept["late"]
    assert kept.after == 7  # No step waited, and seven tokens saw the full cache.
    assert max(seen[:6]) == seen[0] < max(seen[6:-1])
    assert tiny_reference.worst(prompt, engine.answers["late"], kept) < TOLERANCE


@pytest.mark.sample
def test_requests_side_by_side_do_not_read_one_anothers_rows(engine, tiny_reference, noise):
    begin, running = engine.free, []
    prompts = {f"side {at}": noise(400 - 9 * at, seed=at) for at in range(10)}
    wishes = [None, {"granularity": "layer-head", "capacity": 128}, "off", {"capacity": 64}]
    for at, (name, prompt) in enumerate(prompts.items()):
        engine.add(name, prompt, 30, wishes[at % len(wishes)])

    engine.run(lambda engine: running.append(len(engine.scheduler.running)))

    assert engine.free == begin
    assert max(running) > POOL // (GROUPS * (400 // BLOCK + 2))  # More than fit when all are whole.
    for name, prompt in prompts.items():
        assert tiny_reference.worst(prompt, engine.answers[name], engine.kept.get(name)) < TOLERANCE, name


@pytest.mark.sample
def test_preempted_requests_are_compacted_again(engine, tiny_reference, noise):
    begin, before = engine.free, engine.preemptions
    prompts = {f"preempted {at}": noise(60 + 7 * at, seed=at) for at in range(12)}
    for name, prompt in prompts.items():
        engine.add(name, prompt, 190, {"capacity": 48})

    engine.run()

    assert engine.preemptions > before
    assert engine.free == begin
    assert all(len(engine.answers[name].tokens) == 190 for name in prompts)
    for name, prompt in list(prompts.items())[-4:]:  # vLLM preempts the last ones.
        assert tiny_reference.worst(prompt, engine.answers[name], engine.kept[name]) < TOLERANCE, name


@pytest.mark.sample
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_an_abort_at_any_moment_loses_no_block(engine, noise, steps):
    begin = engine.free
    engine.add("aborted", noise(600, seed=steps))
    engine.add("stays", noise(300, seed=steps), 8)
    for _ in range(steps):
        engine.step()
    engine.abort("aborted")

    engine.run()

    assert engine.free == begin and len(engine.answers["stays"].tokens) == 8
    assert not engine.worker.prompts


def test_no_block_is_lost_over_many_requests(engine, noise):
    begin = engine.free
    for at in range(100):
        engine.add(f"many {at}", noise(140 + at % 90, seed=at), 2 + at % 7, {"capacity": 40 + at % 50})

    engine.run()
    engine.add("last", noise(40), 2, "off")  # The workers hear of ends with the next step.
    engine.run()

    assert engine.free == begin
    assert sum(name.startswith("many") for name in engine.kept) == 100
    assert not engine.worker.prompts
    assert not any(len(group.shortened) for group in engine.worker._groups)
