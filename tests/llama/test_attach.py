"""dkv attached to a real, unpatched llama.cpp, with a real dkvd."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from llama_process import KV_HEADS, LAYERS, OLDER, Llama, compressed, dkvd, document, gguf_file, llama  # noqa: F401
from masked import Masked, distance
from processes import Sidecar, waited_for
from transformers import AutoModelForCausalLM

import dkv.hf
from dkv.hf import weights

# ruff: noqa: F811 - fixtures are imported by their names.
pytestmark = [pytest.mark.model, pytest.mark.e2e]

HEAD_DIM = 64
CELL_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
F32 = {"keys": "f32", "values": "f32"}


@pytest.fixture(scope="module")
def reference():
    return Masked(
        AutoModelForCausalLM.from_pretrained(weights.smollm2_folder(), dtype=torch.float32, num_hidden_layers=LAYERS)
    )


def kept_positions(llama: Llama) -> dict[int, list[list[int]]]:
    return dict(enumerate(llama.positions(layers=[*range(LAYERS)], heads=KV_HEADS)["positions"]))


def test_a_prompt_that_is_kept_whole_goes_on_as_llama_cpp_does(llama, document):
    prompt = document(500)
    llama.open(cells=640, plain=True)
    llama.prefill(tokens=prompt[:-1])
    own = llama.go_on(tokens=prompt[-1:], position=499, count=24)
    llama.open(cells=640)

    report = compressed(llama, prompt[:-1], {"name": "fullkv"})

    assert (report["compressed"], report["reason"]) == (False, "the policy keeps this prompt whole")
    assert llama.go_on(tokens=prompt[-1:], position=499, count=24)["tokens"] == own["tokens"]


@pytest.mark.parametrize(
    ("context", "smaller"),
    [
        (F32, False),
        ({**F32, "flash": False}, True),
        ({}, True),
        ({"flash": False}, False),
        ({"keys": "bf16", "values": "bf16"}, False),
        ({**F32, "unified": False}, False),
        ({"keys": "q8_0", "values": "q8_0"}, True),
        ({"keys": "q8_0", "values": "q4_0"}, False),
    ],
    ids=[
        "f32", "f32, transposed, smaller", "f16, smaller", "f16, transposed", "bf16", "f32, own stream", "q8_0, smaller",
        "q8_0 and q4_0",
    ],  # fmt: skip
)
def test_logits_are_those_of_a_masked_computation(llama, document, reference, context, smaller):
    prompt, behind = document(700), [260, 314, 1690]
    whole = reference(prompt, behind, None)
    llama.open(cells=768, plain=True, **context)
    llama.prefill(tokens=prompt)
    own_error = distance(llama.go_on(tokens=behind, position=700, logits=True)["logits"], whole)
    llama.open(cells=768, **context)
    room = {"room": 256, **context} if smaller else {}

    report = compressed(llama, prompt, {"name": "snapkv", "capacity": 128}, **room)

    if OLDER and context.get("keys") == "q8_0":
        assert "this llama.cpp does not say how they are rotated: set type_k" in report["reason"]
        return
    assert (report["compressed"], report["tokens"], report["cells"]) == (True, 700, 128), report
    kept = kept_positions(llama)
    assert len({tuple(head) for layer in kept.values() for head in layer}) > LAYERS  # Each has its own tokens.
    seen = llama.go_on(tokens=behind, position=700, logits=True)["logits"]
    expected = reference(prompt, behind, kept)
    assert distance(seen, expected) < 4 * own_error  # What llama.cpp's own arithmetic differs by.
    assert distance(seen, expected) < distance(whole, expected) / (2 if context.get("values") == "q4_0" else 5)


@pytest.mark.sample
def test_a_policy_of_unequal_budgets_keeps_its_capacity_everywhere(llama, document, reference):
    prompt, behind = document(700), [260, 314]
    llama.open(cells=768, **F32)

    report = compressed(llama, prompt, {"name": "pyramidkv", "capacity": 128})

    assert report["compressed"] and report["cells"] == 128, report
    seen = llama.go_on(tokens=behind, position=700, logits=True)["logits"]
    kept = reference(prompt, behind, kept_positions(llama))
    assert distance(seen, kept) < distance(seen, reference(prompt, behind, None)) / 10


def test_kept_tokens_are_those_of_the_hugging_face_adapter(llama, document, reference, dkvd):
    prompt = document(900)
    llama.open(cells=1024, **F32)
    assert compressed(llama, prompt, {"name": "snapkv", "capacity": 128})["compressed"]

    reference.model.set_attn_implementation("sdpa")
    cache = dkv.hf.Cache(reference.model, policy="snapkv", capacity=128, endpoint=dkvd.endpoint)
    with torch.no_grad():
        reference.model(torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1)

    mine = {(la, h, at) for la, heads in kept_positions(llama).items() for h, row in enumerate(heads) for at in row}
    theirs = {(la, h, at) for la in range(LAYERS) for h, row in enumerate(cache.kept_positions(la)) for at in row}
    assert len(mine) == len(theirs) == LAYERS * KV_HEADS * 128
    assert len(mine & theirs) / len(mine) >= 0.99


def test_a_smaller_context_gives_memory_back(llama, document, dkvd):
    prompt = document(2000)
    llama.open(cells=4096, ubatch=128, **F32)

    report = compressed(llama, prompt, {"capacity": 256}, room=512, ubatch=128, **F32)

    before, peak, after = report["pss"]
    assert report["compressed"], report
    assert before - after > 0.9 * (4096 - 512) * CELL_BYTES
    assert peak - before < report["bytes_before"] * 1.5
    status = json.loads(dkvd.dkv("status", "--json").stdout)
    assert "llama.cpp 0." in json.dumps(status)


@pytest.mark.parametrize(
    "context",
    [{}, {"flash": False}, {"unified": False, "sequences": 2, "cells": 2560}, {"keys": "q8_0", "values": "q8_0"}],
    ids=["f32", "f32, transposed", "f32, own stream", "q8_0"],
)
def test_the_same_context_gives_memory_back(llama, document, reference, context):
    prompt, behind = document(1000), [260, 314, 1690]
    options = {"cells": 1280, **F32, **context}
    llama.open(ubatch=128, **options)

    report = compressed(llama, prompt, {"name": "snapkv", "capacity": 128})

    if OLDER and context.get("keys") == "q8_0":
        assert not report["compressed"] and report["bytes_returned"] == 0
        return
    before, _, after = report["pss"]
    # A transposed V has a row for each dimension: where they begin says whether whole pages of them are free.
    least = (0.9 if context.get("flash", True) else 0.45) * (report["bytes_before"] - report["bytes_after"])
    assert report["compressed"] and report["bytes_returned"] > least, report
    assert before - after > least - (2 << 20)  # Of the process, with all else that it takes.
    expected = reference(prompt, behind, kept_positions(llama))
    whole = reference(prompt, behind, None)
    seen = llama.go_on(tokens=behind, position=1000, logits=True)["logits"]
    assert distance(seen, expected) < distance(whole, expected) / 5

    llama.forget()  # The next prompt takes the cells again.
    again = compressed(llama, prompt, {"name": "snapkv", "capacity": 128})
    assert again["compressed"] and again["bytes_returned"] > least
    assert llama.go_on(tokens=behind, position=1000, logits=True)["logits"] == seen


def test_a_sequence_of_a_split_kv_gives_the_memory_of_its_own_stream_back(llama, document):
    """The same rows were in the first sequence's stream before: their bytes are still there."""
    prompt, said = document(600), []
    llama.open(cells=1536, sequences=2, unified=False, **F32)
    for sequence in (0, 1):
        llama.prefill(tokens=prompt, chunk=400, sequence=sequence)
        report = llama.compress(policy={"name": "snapkv", "capacity": 128})
        assert report["compressed"] and report["bytes_returned"] > 0.9 * (report["bytes_before"] - report["bytes_after"])
        said.append(llama.go_on(tokens=[260], position=600, sequence=sequence, logits=True)["logits"])
        llama.forget(sequence=sequence)

    assert said[0] == said[1]


def test_memory_stays_where_another_sequence_has_cells(llama, document, dkvd):
    llama.open(cells=2048, sequences=2, **F32)
    llama.prefill(tokens=document(1000), chunk=400)
    llama.prefill(tokens=document(100), sequence=1, begin=False)
    own = llama.go_on(tokens=[260], position=100, sequence=1, logits=True)["logits"]
    llama.forget(sequence=0)  # The next prompt has the first cells again, before those of the other sequence.
    llama.forget(sequence=1, begin=100)
    before = json.loads(dkvd.dkv("savings", "--json").stdout)["total"]["bytes_pool"]

    report = compressed(llama, document(1000), {"name": "snapkv", "capacity": 128})

    assert report["compressed"] and report["bytes_returned"] == 0
    given = before + report["bytes_before"] - report["bytes_after"]
    waited_for(lambda: json.loads(dkvd.dkv("savings", "--json").stdout)["total"]["bytes_pool"] == given, "the pool")
    seen = llama.go_on(tokens=[260], position=100, sequence=1, logits=True)["logits"]
    assert distance(seen, own) < 1e-2  # Sums over cells in another order.


@pytest.mark.sample
def test_prompts_follow_one_another_in_a_context(llama, document, dkvd):
    """Their cells are free for other tokens of the context: what the system does not take is llama.cpp's own pool."""

    def saved() -> tuple[int, int]:
        total = json.loads(dkvd.dkv("savings", "--json").stdout)["total"]
        return total["bytes_pool"], total["bytes_returned"]

    llama.open(cells=1024)
    (pool, returned), dropped = saved(), 0
    for number in (1, 2, 3):
        llama.forget()
        report = compressed(llama, document(600 + number), {"capacity": 128})
        assert (report["compressed"], report["tokens"], report["prompts_compressed"]) == (True, 600 + number, number)
        returned += report["bytes_returned"]
        dropped += report["bytes_before"] - report["bytes_after"]
    assert returned > 0.9 * dropped
    waited_for(lambda: saved()[1] == returned, "the sidecar to be told")
    assert 0 <= saved()[0] - pool < 0.1 * dropped  # Parts of pages.


@pytest.mark.parametrize("unified", [True, False], ids=["unified KV", "split KV"])
def test_sequences_of_a_context_are_compressed_one_after_the_other(llama, document, reference, unified):
    prompts, behind = [document(700), document(1300)[600:]], [260, 314, 1690]
    llama.open(cells=1600, sequences=2, unified=unified, **F32)
    kept = []
    for sequence, prompt in enumerate(prompts):
        llama.prefill(tokens=prompt, chunk=400, sequence=sequence)
        report = llama.compress(policy={"name": "snapkv", "capacity": 128})
        assert (report["compressed"], report["tokens"], report["cells"]) == (True, 700, 128), report
        kept.append(kept_positions(llama))

    for sequence, prompt in enumerate(prompts):
        seen = llama.go_on(tokens=behind, position=700, logits=True, sequence=sequence)["logits"]
        expected = reference(prompt, behind, kept[sequence])
        assert distance(seen, expected) < distance(seen, reference(prompt, behind, None)) / 10

    llama.forget(sequence=1)  # Its cells are used again, around those of the other.
    llama.prefill(tokens=prompts[1], chunk=400, sequence=1)
    assert llama.compress(policy={"name": "snapkv", "capacity": 128})["compressed"]
    assert kept_positions(llama) == kept[1]
    seen = llama.go_on(tokens=behind, position=700, logits=True, sequence=1)["logits"]
    assert distance(seen, reference(prompts[1], behind, kept[1])) < distance(seen, reference(prompts[1], behind, None)) / 10


@pytest.mark.parametrize("context", [F32, {**F32, "flash": False}], ids=["f32", "f32, transposed"])
def test_cells_that_another_sequence_left_meanwhile_are_read_in_the_order_of_positions(llama, document, reference, context):
    """The prompt's second part lies before its first."""
    prompt, behind = document(700), [260, 314, 1690]
    llama.open(cells=1600, sequences=2, **context)
    llama.prefill(tokens=document(500), sequence=1, begin=False)
    llama.prefill(tokens=prompt[:400])
    llama.forget(sequence=1)
    llama.prefill(tokens=prompt[400:], position=400, begin=False)

    report = llama.compress(policy={"name": "snapkv", "capacity": 128})

    assert (report["compressed"], report["tokens"], report["cells"]) == (True, 700, 128), report
    seen = llama.go_on(tokens=behind, position=700, logits=True)["logits"]
    expected = reference(prompt, behind, kept_positions(llama))
    assert distance(seen, expected) < distance(seen, reference(prompt, behind, None)) / 10


def test_a_sequence_of_which_a_part_was_removed_is_refused_by_name(llama, document):
    llama.open(cells=1024)
    llama.prefill(tokens=document(600))
    llama.forget(sequence=0, begin=100, end=200)

    report = llama.compress(policy={"capacity": 128})

    assert "the sequence has position 200 where 100 was expected" in report["reason"], report


def test_tokens_of_another_sequence_in_between_are_refused_by_name(llama, document):
    llama.open(cells=1024, sequences=2)
    llama.prefill(tokens=document(300))
    llama.prefill(tokens=document(20), sequence=1, begin=False)

    report = llama.compress(policy={"capacity": 128})

    assert "layer 0 showed queries of 320 tokens, the sequence has 300" in report["reason"]


@pytest.mark.sample
def test_one_id_names_a_prompt_in_the_report_in_both_logs_and_in_dkv(llama, document, dkvd):
    llama.open(cells=640)
    compressed(llama, document(300), {"name": "snapkv", "capacity": 128})
    llama.forget()

    report = compressed(llama, document(500), {"name": "snapkv", "capacity": 128})

    session = report["session"]
    assert report["logged"] == [f"dkv: session {session}: the prompt of 500 tokens is compressed by snapkv"]
    listed = json.loads(dkvd.dkv("--json", "sessions", session).stdout)["sessions"]
    assert [(each["session"], each["prompt_tokens"]) for each in listed] == [(session, 500)]
    assert waited_for(lambda: [line for line in dkvd.log.read_text().splitlines() if session in line], "dkvd's log")


@pytest.mark.parametrize("ctypes", [False, True], ids=["cffi's params", "ctypes' params"])
def test_the_users_own_callback_is_still_asked(llama, document, ctypes):
    llama.open(cells=512, chained=True, ctypes=ctypes)

    report = compressed(llama, document(300), {"capacity": 128})

    assert report["compressed"]
    assert llama.go_on(tokens=[5], position=300)["asked"] > 100


def test_another_library_or_version_is_refused_by_name(llama, tmp_path):
    assert "is not a library that this process has loaded" in llama.open(library="/usr/lib/libno.so")["error"]
    assert "llama_version is not in this process" in llama.open(library=None)["error"]

    source, other = tmp_path / "other.c", tmp_path / "libllama.so"
    source.write_text('char const* llama_version(void) { return "0.9.1"; }')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", other, source], check=True)
    found = llama.open(library=str(other), load=True)["error"]
    assert "llama.cpp is version 0.9.1: known are 0.4.x, 0.5.x, 0.6.x; its cache is left as it is" in found


@pytest.mark.sample
def test_without_a_dkvd_the_text_is_llama_cpps_own(gguf_file, document, tmp_path):
    prompt = document(400)
    tmp_path.chmod(0o700)
    running = Sidecar(tmp_path).start()
    llama = Llama(gguf_file, running.endpoint)
    llama.open(cells=512, plain=True)
    llama.prefill(tokens=prompt)
    own = llama.go_on(tokens=[5], position=400, count=12)["tokens"]
    llama.open(cells=512, timeout_s=1)
    assert compressed(llama, prompt, {"capacity": 128})["compressed"]
    llama.forget()
    llama.prefill(tokens=prompt)

    running.kill()
    report = llama.compress(policy={"capacity": 128})

    assert (report["compressed"], report["cells"]) == (False, 0)
    whose = f"session {report['session']}: " if report["session"] else ""
    assert report["logged"][-1] == f"dkv: {whose}the prompt's cache is left whole: {report['reason']}"
    assert report["reason"], "it says why"
    assert llama.go_on(tokens=[5], position=400, count=12)["tokens"] == own
    llama.close()
    llama.stop()


def test_a_prompt_that_goes_on_with_whole_cells_is_compressed_as_one_that_was_read_at_once(llama, document):
    """A conversation grows by a turn."""
    wish, kept = {"name": "snapkv", "capacity": 128}, []
    for begins in (False, True):
        llama.open(cells=1024)
        llama.prefill(tokens=document(400))
        llama.prefill(tokens=document(600)[400:], position=400, begin=begins)
        assert llama.compress(policy=wish)["compressed"]
        kept.append(llama.positions(layers=list(range(LAYERS)), heads=KV_HEADS)["positions"])

    assert kept[0] == kept[1]
    llama.prefill(tokens=document(100), position=600)
    assert "a part was removed" in llama.compress(policy=wish)["reason"]


@pytest.mark.sample
def test_what_is_not_supported_is_refused_by_name(llama, document):
    llama.open(cells=512, sequences=2)
    error = llama.prefill(tokens=document(10), sequence=2)["error"]
    assert "the context has no sequence 2: its n_seq_max is 2" in error

    llama.open(cells=512, window_max=16)
    report = compressed(llama, document(300), {"capacity": 128})
    assert "wants 32 rows of queries, 16 are remembered" in report["reason"]

    llama.open(cells=512)
    llama.prefill(tokens=document(300), begin=False)
    assert "begin was not called" in llama.compress()["reason"]

    llama.forget()
    report = compressed(llama, document(400), {"capacity": 300}, room=256)
    assert "has too few cells" in report["reason"]
    assert not report["compressed"]
    llama.prefill(tokens=document(20), position=400)
    reason = llama.compress(policy={"name": "snapkv", "capacity": 128})["reason"]
    assert "scores with the last 32 tokens, and 20 were decoded since begin" in reason

    llama.forget()
    report = compressed(llama, document(300), {"capacity": 8})
    assert "capacity" in report["reason"] and not report["compressed"]
