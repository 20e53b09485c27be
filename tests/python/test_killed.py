"""dkvd is killed at any moment of a prompt: each layer keeps real rows, and the text is the right text of those rows.

DKV_KILLS is how often (6), DKV_SEED the seed, which is printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time

import pytest
import torch
from conftest import make_tiny_llama
from processes import waited_for
from test_cache import greedy, logits_of_masked_model, step_by_step
from test_e2e import at_layer

import dkv.hf

pytestmark = pytest.mark.e2e

LAYERS, PROMPT, TOTAL = 8, 700, 708
WISHES = (
    {"policy": "snapkv", "capacity": 96},
    {"policy": "dynamickv", "capacity": 96},
    {"policy": "pyramidkv", "capacity": 96},
    {"policy": "dynamickv", "capacity": 128, "progressive": False},
)


class Kept:
    """The prompt positions whose rows each layer of a cache really has, found by comparing rows with the full cache's.

    Asserts that every row is one of the prompt's, to rounding, and that none is there twice.
    """

    def __init__(self, cache: dkv.hf.Cache, full: list[tuple[torch.Tensor, torch.Tensor]]):
        self.forms = []
        self._positions = [self._of(cache.layers[index], *full[index]) for index in range(LAYERS)]

    def kept_positions(self, layer: int) -> list[list[int]]:
        return self._positions[layer]

    def _of(self, layer, keys: torch.Tensor, values: torch.Tensor) -> list[list[int]]:
        prefix = layer.prefix
        if prefix is None:
            self.forms.append("full")
            return [list(range(PROMPT))] * keys.shape[0]
        self.forms.append("packed" if layer.positions else "staged")
        found = []
        for head, length in enumerate(prefix.lengths):
            kept_keys, kept_values = prefix.head_keys(head)[:length], prefix.head_values(head)[:length]
            at = torch.cdist(kept_keys, keys[head]).argmin(1)
            torch.testing.assert_close(kept_keys, keys[head][at], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(kept_values, values[head][at], atol=1e-4, rtol=1e-4)
            positions = at.tolist()
            assert len(set(positions)) == length
            if layer.positions:
                assert positions == layer.positions[head]
            found.append(positions)
        return found


@pytest.fixture(scope="module")
def model():
    return make_tiny_llama(layers=LAYERS)


@pytest.fixture
def text(prompt):
    return prompt(TOTAL)


@pytest.fixture
def full(model, text):
    with torch.no_grad():
        cache = model(text[:, :PROMPT], use_cache=True).past_key_values
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def check(model, cache, text, full, logits) -> list[str]:
    """What became of each layer, once the logits are those of exactly its rows."""
    kept = Kept(cache, full)
    report = cache.report()
    assert report.compressed or report.failure is not None
    expected = logits_of_masked_model(model, text, kept, PROMPT)
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)
    return kept.forms


def test_the_text_of_a_prompt_whose_sidecar_was_killed_is_that_of_the_rows_each_layer_has(
    model, text, full, sidecar
):
    seed, kills = int(os.environ.get("DKV_SEED", "1")), int(os.environ.get("DKV_KILLS", "6"))
    rng, seen = random.Random(seed), []
    began = time.perf_counter()
    greedy(model, text[:, :PROMPT], 1, past_key_values=dkv.hf.Cache(model, endpoint=sidecar.endpoint, **WISHES[0]))
    duration = time.perf_counter() - began
    for kill in range(kills):
        wish, how, moment = rng.choice(WISHES), rng.choice(("kill", "stop and kill", "end")), rng.random() * duration
        said = f"seed {seed}, kill {kill}: {how} after {1000 * moment:.1f} ms, {wish}"
        print(said)
        if sidecar.process.poll() is not None:
            sidecar.start()
        cache = dkv.hf.Cache(model, endpoint=sidecar.endpoint, **wish)

        def end(how=how):
            if how == "stop and kill":
                sidecar.process.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
            sidecar.process.send_signal(signal.SIGTERM if how == "end" else signal.SIGKILL)
            sidecar.process.wait()

        killer = threading.Timer(moment, end)
        killer.start()
        logits = step_by_step(model, cache, text, PROMPT)
        killer.join()
        seen.append(check(model, cache, text, full, logits))
        print("   " + " ".join(seen[-1]))
    assert len(seen) == kills


@pytest.mark.parametrize("policy, form", [("snapkv", "packed"), ("dynamickv", "staged")])
def test_layers_that_were_released_before_the_kill_keep_their_rows_and_the_others_all(
    model, text, full, sidecar, policy, form
):
    cache = dkv.hf.Cache(model, policy=policy, capacity=96, endpoint=sidecar.endpoint)

    def layers_done() -> int:
        (session,) = json.loads(sidecar.dkv("--json", "sessions").stdout)["sessions"]
        return session["layers_done"]

    hooks = [
        # Layers 0 to 4 are told by then; the sidecar has done four of them when layer 6 releases them.
        at_layer(model, 6, lambda: waited_for(lambda: layers_done() >= 4, "four layers")),
        at_layer(model, 7, sidecar.kill),
    ]

    logits = step_by_step(model, cache, text, PROMPT)

    for hook in hooks:
        hook.remove()
    forms = check(model, cache, text, full, logits)
    assert forms[:4] == [form] * 4 and forms[7] == "full"
    assert not cache.report().compressed


def test_what_was_generated_before_the_kill_goes_on(model, text, full, sidecar):
    cache = dkv.hf.Cache(model, policy="dynamickv", capacity=96, endpoint=sidecar.endpoint)
    greedy(model, text[:, :PROMPT], 1, past_key_values=cache)
    assert cache.report().compressed
    sidecar.kill()
    kept = Kept(cache, full)

    with torch.no_grad():
        steps = [model(text[:, at : at + 1], past_key_values=cache).logits[0] for at in range(PROMPT, TOTAL)]

    torch.testing.assert_close(
        torch.cat(steps), logits_of_masked_model(model, text, kept, PROMPT), atol=2e-3, rtol=2e-3
    )
