"""Tensor parallelism: three ranks, each with one of SmolLM2's KV heads, a session and a plan of its own."""

from __future__ import annotations

import json

import pytest
from engine import Engine, Kept, settled, watch
from processes import waited_for

from dkv.vllm.process import process

TOLERANCE = 1e-4  # Of a logprob, float32.
RANKS, PROMPT, BLOCK = 3, 400, 32
LAYERS = 30


KEPT: dict[str, Kept] = {}  # In each worker's process.


def in_worker(_, question: str, *arguments):
    """Runs in each worker's process."""
    worker = process.worker
    if question == "watch":
        return watch(worker, KEPT)
    return {
        "attached": lambda: worker.sidecar.attached,
        "settled": lambda: settled(worker),
        "busy": lambda: len(worker.prompts) + sum(len(group.shortened) for group in worker._groups),
        "groups": lambda: [[layer for layer, _ in group.layers] for group in worker._groups],
        "kept": lambda: KEPT.get(*arguments),
    }[question]()


class Ranks(Engine):
    def ask(self, question: str, *arguments) -> list:
        """The answer of each rank."""
        return self.llm.llm_engine.collective_rpc(in_worker, args=(question, *arguments))

    def _watch_workers(self) -> None:
        self.ask("watch")
        waited_for(lambda: all(self.ask("attached")), "the ranks to attach")

    def settled(self) -> bool:
        return all(self.ask("settled"))


@pytest.fixture(scope="module")
def engine(model, sidecar):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        running = Ranks(
            model,
            sidecar.endpoint,
            tensor_parallel_size=RANKS,
            max_model_len=512,
            max_num_batched_tokens=512,
            num_gpu_blocks_override=1000,
        )
    yield running
    running.close()


def joined(ranks: list[Kept]) -> Kept:
    """What the whole model keeps: each rank has one KV head."""
    assert len({(each.tokens, each.after) for each in ranks}) == 1  # They carry a plan out in the same step.
    layers = zip(*(each.positions for each in ranks))
    return Kept(ranks[0].tokens, [[layer[0] for layer in heads] for heads in layers], [], ranks[0].after)


def planned(ranks: list[Kept]) -> list[list[int]]:
    """Rows of each layer by each rank's own plan."""
    return [[len(layer[0]) for layer in each.planned] for each in ranks]


def last(engine) -> None:
    """The workers hear of ends with the next step."""
    engine.add("last", [1000] * 40, 2, "off")
    engine.run()


def test_ranks_whose_plans_are_equal(engine, reference, text):
    prompt, begin = text(PROMPT), engine.free
    engine.add("equal", prompt, dkv={"name": "snapkv", "capacity": 128})

    engine.run()

    ranks = engine.ask("kept", "equal")
    assert len(set(map(tuple, planned(ranks)))) == 1
    assert engine.free == begin and engine.stats["requests compressed"] == 1
    assert reference.worst(prompt, engine.answers["equal"], joined(ranks)) < TOLERANCE
    assert reference.worst(prompt, engine.answers["equal"]) > 100 * TOLERANCE  # Against the full cache.


@pytest.mark.sample
def test_ranks_whose_plans_differ_keep_as_many_blocks_as_the_largest_needs(engine, reference, text):
    prompt, begin, given_back = text(PROMPT), engine.free, engine.stats["blocks given back"]
    engine.add("differ", prompt, dkv={"granularity": "layer", "capacity": 128})

    engine.run()

    ranks = engine.ask("kept", "differ")
    groups = engine.ask("groups")
    assert groups[0] == groups[1] == groups[2] and sorted(sum(groups[0], [])) == list(range(LAYERS))
    plans = planned(ranks)
    assert len(set(map(tuple, plans))) == RANKS
    most = [max(plan[layer] for plan in plans for layer in group) for group in groups[0]]
    for each in ranks:
        assert [{len(each.positions[layer][0]) for layer in group} for group in groups[0]] == [{count} for count in most]
    assert engine.stats["blocks given back"] - given_back == sum((PROMPT - count) // BLOCK for count in most) > 0
    assert engine.free == begin
    assert reference.worst(prompt, engine.answers["differ"], joined(ranks)) < TOLERANCE


def test_each_rank_keeps_by_its_own_part_of_the_profile(engine, reference, text):
    prompt, begin = text(PROMPT), engine.free
    engine.add("auto", prompt, dkv={"name": "auto", "capacity": 128})

    engine.run()

    ranks = engine.ask("kept", "auto")
    assert all(len(set(plan)) > 5 for plan in planned(ranks))  # By the weights of 30 layers.
    assert len(set(map(tuple, planned(ranks)))) == RANKS
    assert engine.free == begin
    assert reference.worst(prompt, engine.answers["auto"], joined(ranks)) < TOLERANCE


def test_a_rank_without_a_plan_keeps_the_request_whole_on_all(engine, sidecar, reference, text):
    prompt, begin, given_back = text(PROMPT), engine.free, engine.stats["blocks given back"]
    instance = json.loads(sidecar.dkv("savings", "--json").stdout)["instances"][1]["instance"]
    sidecar.dkv("policy", "set", "dynamickv", "--capacity", str(2 * PROMPT), "--instance", instance)
    engine.add("whole", prompt, 6)

    engine.run()
    sidecar.dkv("policy", "reset", "--instance", instance)
    last(engine)

    assert engine.ask("kept", "whole") == [None] * RANKS
    assert engine.stats["blocks given back"] == given_back and engine.free == begin
    assert engine.ask("busy") == [0] * RANKS
    assert reference.worst(prompt, engine.answers["whole"]) < TOLERANCE


def test_requests_side_by_side_do_not_read_one_anothers_rows(engine, reference, text):
    begin = engine.free
    prompts = {f"side {at}": text(300 - 9 * at, at) for at in range(3)}
    wishes = [{"granularity": "layer-head", "capacity": 64}, "off", {"capacity": 96}]
    for wish, (name, prompt) in zip(wishes, prompts.items()):
        engine.add(name, prompt, 12, wish)

    engine.run()

    assert engine.free == begin
    for name, prompt in prompts.items():
        ranks = engine.ask("kept", name)
        kept = joined(ranks) if name != "side 1" else None
        assert reference.worst(prompt, engine.answers[name], kept) < TOLERANCE, name


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_abort_before_between_and_after_the_ranks_agree_loses_no_block(engine, text, steps):
    begin = engine.free
    engine.add("aborted", text(PROMPT))
    for _ in range(steps):
        engine.step()
        waited_for(engine.settled, "the plans")
    engine.abort("aborted")

    last(engine)

    assert engine.free == begin
    assert engine.ask("busy") == [0] * RANKS
