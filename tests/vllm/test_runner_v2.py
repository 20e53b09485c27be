"""vLLM's model runner V2, the default on GPUs: on the CPU its Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import pytest
from interpreted import RUNNER_V2, interpreted

TOLERANCE = 1e-4  # Of a logprob, float32.
POOL = 105  # Blocks, in 6 groups: three of the four requests.


@pytest.mark.parametrize("scheduler", ["Scheduler", "AsyncScheduler"])
def test_requests_are_compacted_and_after_a_preemption_again(tmp_path, tiny, sidecar, tiny_reference, noise, scheduler):
    prompts = {"layers": noise(150), "heads": noise(333, seed=1), "off": noise(100), "preempted": noise(81, seed=3)}
    wishes = {
        "layers": {"granularity": "layer", "capacity": 64},
        "heads": {"granularity": "layer-head", "capacity": 128},
        "off": "off",
        "preempted": {"capacity": 48},
    }

    seen = interpreted(
        tmp_path,
        2,
        [(name, prompt, 40, wishes[name]) for name, prompt in prompts.items()],
        model=tiny,
        endpoint=sidecar.endpoint,
        extra={"layers_per_group": 1},
        async_scheduling=scheduler == "AsyncScheduler",
        max_model_len=384,
        max_num_batched_tokens=128,
        num_gpu_blocks_override=POOL,
    )

    assert RUNNER_V2 in seen.runner and seen.scheduler == scheduler
    assert seen.free[0] == seen.free[-1] and seen.busy == 0
    assert set(prompts) - set(seen.kept) == {"off"}
    assert len({layer[0] for layer in seen.kept["layers"].lengths()}) > 1
    assert any(len(set(layer)) > 1 for layer in seen.kept["heads"].lengths())
    assert seen.preemptions > 0 and seen.stats["requests compressed"] > len(seen.kept)
    assert seen.kept["preempted"].tokens > len(prompts["preempted"])  # It read what it had said, too.
    for name, prompt in prompts.items():
        assert tiny_reference.worst(prompt, seen.answers[name], seen.kept.get(name)) < TOLERANCE, name
    assert tiny_reference.worst(prompts["heads"], seen.answers["heads"]) > 100 * TOLERANCE  # Against the full cache.
