"""torch.compile on, as servers have it: attention stays Python between the compiled pieces."""

from __future__ import annotations

import pytest
import torch._dynamo
from engine import Engine

TOLERANCE = 1e-4  # Of a logprob, float32.


@pytest.fixture(scope="module")
def engine(tiny, sidecar):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.config, "disable", False)  # The other tests have it disabled.
        patch.delenv("TORCHDYNAMO_DISABLE")
        running = Engine(tiny, sidecar.endpoint, {"layers_per_group": 1}, enforce_eager=False)
        assert running.llm.llm_engine.vllm_config.compilation_config.backend == "inductor"
        yield running
        running.close()


@pytest.mark.parametrize("granularity", ["layer", "layer-head"])
def test_a_compiled_model_is_compacted(engine, tiny_reference, noise, granularity):
    prompt, begin = noise(500), engine.free
    engine.add(granularity, prompt, dkv={"granularity": granularity})

    engine.run()

    assert engine.free == begin
    assert tiny_reference.worst(prompt, engine.answers[granularity], engine.kept[granularity]) < TOLERANCE
