"""A small model of random weights in a real vLLM with a real dkvd: one request at a time."""

from __future__ import annotations

import json
import logging
import re

import pytest
from engine import Engine
from processes import waited_for

TOLERANCE = 1e-4  # Of a logprob, float32.
LAYERS, KV_HEADS, BLOCK = 6, 2, 32


@pytest.fixture(scope="module")
def engine(tiny, sidecar):
    running = Engine(tiny, sidecar.endpoint, {"layers_per_group": 1})
    yield running
    running.close()


def answer(engine, name, tokens, dkv=None, count=24) -> int:
    """Adds a request and runs it to its end. Returns how many blocks it gave back while it ran."""
    begin, given_back = engine.free, engine.stats["blocks given back"]
    engine.add(name, tokens, count, dkv)
    engine.run()
    assert engine.free == begin  # The others came back at its end.
    return engine.stats["blocks given back"] - given_back


@pytest.mark.sample
def test_layers_keep_unequal_numbers_of_rows(engine, tiny_reference, noise):
    prompt = noise(500)

    given_back = answer(engine, "layers", prompt, {"granularity": "layer", "capacity": 128})

    kept = engine.kept["layers"]
    lengths = kept.lengths()
    assert all(len(set(layer)) == 1 for layer in lengths) and len({layer[0] for layer in lengths}) > 1
    assert all((500 - layer[0]) % BLOCK == 0 for layer in lengths)
    blocks = sum((500 - layer[0]) // BLOCK for layer in lengths)
    assert given_back == blocks > 0.4 * LAYERS * (500 // BLOCK)
    assert tiny_reference.worst(prompt, engine.answers["layers"], kept) < TOLERANCE
    assert tiny_reference.worst(prompt, engine.answers["layers"]) > 100 * TOLERANCE  # Against the full cache.


@pytest.mark.sample
def test_heads_keep_unequal_numbers_of_rows(engine, tiny_reference, noise):
    prompt = noise(509)

    answer(engine, "heads", prompt, {"granularity": "layer-head", "capacity": 128})

    kept = engine.kept["heads"]
    assert any(len(set(layer)) > 1 for layer in kept.lengths())
    assert tiny_reference.worst(prompt, engine.answers["heads"], kept) < TOLERANCE


def test_a_prompt_of_whole_blocks(engine, tiny_reference, noise):
    prompt = noise(13 * BLOCK)

    answer(engine, "whole blocks", prompt, {"granularity": "layer-head", "capacity": 128})

    kept = engine.kept["whole blocks"]
    assert all(length % BLOCK == 0 for layer in kept.lengths() for length in layer)
    assert tiny_reference.worst(prompt, engine.answers["whole blocks"], kept) < TOLERANCE


def test_blocks_that_go_back_are_counted_as_bytes_of_the_engines_pool(engine, sidecar, noise):
    def total() -> dict:
        return json.loads(sidecar.dkv("savings", "--json").stdout)["total"]

    before = total()

    given_back = answer(engine, "pool", noise(500), {"capacity": 64})

    waited_for(lambda: total()["sessions"] > before["sessions"], "the sidecar to be told")
    page = next(iter(engine.worker._layers.values())).kv_cache[0]  # A block of a group of one layer.
    assert total()["bytes_pool"] - before["bytes_pool"] == given_back * page.numel() * page.element_size() > 0
    assert total()["bytes_returned"] == before["bytes_returned"]


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


@pytest.fixture
def records():
    """Of dkv's logger in vLLM, which does not propagate to pytest's."""
    log, records = logging.getLogger("vllm.dkv"), Records()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(records)
    yield records.kept
    log.removeHandler(records)
    log.setLevel(level)


def test_one_id_names_a_request_in_vllms_log_in_dkvds_log_and_in_dkv(engine, sidecar, noise, records):
    answer(engine, "named", noise(500), {"capacity": 64}, count=4)

    line = next(record for record in records if "is compressed" in record.getMessage())
    session = line.dkv_session
    assert re.fullmatch(rf"dkv: session {session}: request named-\w+ of 500 tokens is compressed", line.getMessage())
    listed = json.loads(sidecar.dkv("--json", "sessions", session).stdout)["sessions"]
    assert [(each["session"], each["prompt_tokens"]) for each in listed] == [(session, 500)]
    assert waited_for(lambda: [line for line in sidecar.log.read_text().splitlines() if session in line], "dkvd's log")


def test_a_request_chooses_its_capacity(engine, noise):
    answer(engine, "small", noise(500), {"capacity": 48}, count=4)
    answer(engine, "large", noise(500), {"capacity": 200}, count=4)

    small, large = (sum(map(sum, engine.kept[name].lengths())) for name in ("small", "large"))
    assert 48 * LAYERS * KV_HEADS <= small < 200 * LAYERS * KV_HEADS <= large


def test_a_wish_without_a_name_leaves_the_sidecars_capacity(engine, noise):
    answer(engine, "by head", noise(500), {"granularity": "layer-head"}, count=4)
    answer(engine, "by name", noise(500), {"name": "dynamickv", "granularity": "layer-head"}, count=4)

    lengths = engine.kept["by head"].lengths()
    assert any(len(set(layer)) > 1 for layer in lengths)
    assert 128 * LAYERS * KV_HEADS <= sum(map(sum, lengths)) < (128 + BLOCK) * LAYERS * KV_HEADS
    assert "by name" not in engine.kept  # Its own default, 512, is more than the prompt.


def test_a_request_says_off(engine, tiny_reference, noise):
    prompt = noise(300)

    answer(engine, "off", prompt, "off", count=6)

    assert "off" not in engine.kept
    assert engine.stats["left whole: its request said off"] == 1
    assert tiny_reference.worst(prompt, engine.answers["off"]) < TOLERANCE


@pytest.mark.parametrize(
    "wish, counted, said",
    [
        ("on", "wish was not understood", 'kv_transfer_params["dkv"] is \'on\': expected "off" or parameters of a policy'),
        ({"capasity": 64}, "wish was not understood", "has 'capasity': expected name, capacity"),
        ({"capacity": "much"}, "wish was not understood", "capacity is 'much'"),
        ({"capacity": 8}, "invalid_argument", "below the window of 32 tokens"),
    ],
)
def test_a_wish_that_is_not_understood_leaves_the_request_whole(engine, noise, wish, counted, said):
    answer(engine, "wish", noise(100), wish, count=4)

    assert len(engine.answers["wish"].tokens) == 4
    assert [each for each in engine.stats if each.startswith("left whole: ") and counted in each]
    assert [line for line in engine.worker._said if said in line], engine.worker._said


@pytest.mark.sample
def test_a_dead_sidecar_costs_no_request_anything(engine, sidecar, tiny_reference, noise):
    prompt = noise(400)
    sidecar.kill()

    answer(engine, "dead", prompt, count=6)

    assert "dead" not in engine.kept
    assert tiny_reference.worst(prompt, engine.answers["dead"]) < TOLERANCE
    assert [each for each in engine.stats if each.startswith("left whole: unavailable")], engine.stats

    sidecar.start("--policy", "dynamickv", "--capacity", "128")
    for again in range(40):  # The engine notices within a heartbeat.
        answer(engine, f"again {again}", noise(300), count=2)
        if f"again {again}" in engine.kept:
            return
    raise AssertionError(engine.stats)
