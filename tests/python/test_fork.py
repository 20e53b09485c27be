"""Processes that fork with a cache: each goes on alone, and none reads what another wrote."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from fakes import FakeEngine
from processes import waited_for
from test_cache import greedy

import dkv
import dkv.hf
from dkv.hf import forks

CHILD_S = 300
KINDS = ["compressed", "whole"]


class Gate:
    """What one process waits for and the other opens."""

    def __init__(self):
        self._read, self._write = os.pipe()

    def open(self) -> None:
        os.write(self._write, b"!")

    def wait(self) -> None:
        if not select.select([self._read], [], [], CHILD_S)[0]:
            raise TimeoutError("the gate was not opened")
        os.read(self._read, 1)


class Child:
    """A forked process that runs `work` and says what came of it."""

    def __init__(self, work):
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                answer = {"value": work()}
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)

    def result(self):
        said = b""
        while select.select([self._read], [], [], CHILD_S)[0] and (part := os.read(self._read, 1 << 16)):
            said += part
        if not said:
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read)
        answer = json.loads(said or '{"error": "the child said nothing"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]


def prefilled(model, tokens, kind: str) -> dkv.hf.Cache:
    cache = dkv.hf.Cache(model, engine=FakeEngine(compress=kind == "compressed"))
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    return cache


@pytest.fixture
def prefix(prompt):
    return prompt(100)


@pytest.fixture
def answer(tiny_llama, prompt, prefix):
    """The text after the prefix and question `seed`; without a cache that of a new one."""

    def text(seed: int, cache: dkv.hf.Cache | None = None, kind: str = "whole") -> list[int]:
        cache = cache if cache is not None else prefilled(tiny_llama, prefix, kind)
        question = torch.cat([prefix, prompt(6, seed=seed)], dim=1)
        return greedy(tiny_llama, question, 10, past_key_values=cache)

    return text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["reset", "reset and again", "del"])
def test_a_childs_end_of_a_cache_leaves_its_parents_rows(tiny_llama, prompt, prefix, answer, kind, end):
    expected, cache = answer(1, kind=kind), prefilled(tiny_llama, prefix, kind)
    held = [cache]

    def work():
        cache = held.pop()
        if end != "del":
            cache.reset()
        if end == "reset and again":
            answer(5, cache)
            return cache.report().prompt_tokens
        del cache
        gc.collect()

    if end == "del":
        del cache
    child = Child(work)

    assert child.result() == (106 if end == "reset and again" else None)
    assert answer(1, held[0]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_parent_children_and_a_grandchild_go_on_from_one_prefix(tiny_llama, prefix, answer, kind):
    expected = [answer(seed, kind=kind) for seed in range(4)]
    cache, gate = prefilled(tiny_llama, prefix, kind), Gate()

    def first_child():
        gate.wait()  # For the parent and its other child to have written their rows.
        text = answer(1, cache)
        cache.crop(-15)  # Back to the prefix.
        return [text, Child(lambda: answer(2, cache)).result()]

    first = Child(first_child)
    second = Child(lambda: answer(3, cache))
    texts = [answer(0, cache), second.result()]
    gate.open()

    assert [texts[0], *first.result(), texts[1]] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["reset", "del"])
def test_a_child_outlives_its_parents_cache(tiny_llama, prompt, prefix, answer, kind, end):
    expected, cache, gate = answer(1, kind=kind), prefilled(tiny_llama, prefix, kind), Gate()
    held = [cache]
    del cache

    def work():
        gate.wait()
        return answer(1, held[0])

    child = Child(work)
    if end == "reset":
        held[0].reset()
        answer(5, held[0])
    else:
        held.clear()
        gc.collect()
    gate.open()

    assert child.result() == expected


def test_rows_are_copied_once_and_only_after_a_fork(tiny_llama, prompt, prefix):
    cache = prefilled(tiny_llama, prefix, "whole")
    text = torch.cat([prefix, prompt(6, seed=1)], dim=1)
    said = greedy(tiny_llama, text, 10, past_key_values=cache)
    assert not cache.layers[0].heap

    Child(lambda: None).result()
    greedy(tiny_llama, torch.tensor([said]), 10, past_key_values=cache)
    rows = cache.layers[0].keys.data_ptr()
    assert cache.layers[0].heap and cache._storage is None

    Child(lambda: None).result()
    assert cache.layers[0].keys.data_ptr() == rows


def test_memory_that_a_child_sees_goes_with_the_last_who_has_it(tiny_llama, prefix):
    def arenas() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum("memfd:dkv" in os.readlink(link) for link in links if os.path.islink(link))

    gc.collect()
    before = arenas()
    for kind in KINDS:
        cache = prefilled(tiny_llama, prefix, kind)

        def work():
            cache.reset()
            cache._own_engine = None  # The fake one keeps its arenas.
            gc.collect()
            return arenas()

        assert Child(work).result() == before
        cache.reset()
        cache._own_engine = None
        gc.collect()
        assert arenas() == before


@pytest.mark.parametrize("layer", [1, 3])
def test_a_fork_in_the_middle_of_a_prompt_leaves_it_to_the_parent(tiny_llama, prefix, answer, layer):
    expected = answer(1, kind="compressed")
    engine = FakeEngine()
    cache, children = dkv.hf.Cache(tiny_llama, engine=engine), []

    def work():
        with pytest.raises(RuntimeError, match=r"^this process was forked while the cache read its prompt, which the "
                                               r"parent goes on with: call reset\(\) and run the prompt again"):  # fmt: skip
            with torch.no_grad():
                tiny_llama(prefix, past_key_values=cache)
        with pytest.raises(RuntimeError, match="it is reading its prompt"):
            copy.deepcopy(cache)
        cache.reset()
        told = list(engine.sessions[0].closed_with)
        with torch.no_grad():
            tiny_llama(prefix, past_key_values=cache)
        return [told, cache.report().compressed, answer(1, cache)]

    def fork(*_):
        hook.remove()
        children.append(Child(work))

    hook = tiny_llama.model.layers[layer].register_forward_pre_hook(fork)
    with torch.no_grad():
        tiny_llama(prefix, past_key_values=cache)

    assert children[0].result() == [[], True, expected]
    assert cache.report().compressed and engine.sessions[0].closed_with == [None]
    assert answer(1, cache) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_may_finish_a_forward_that_its_parent_began_after_the_prompt(tiny_llama, prompt, prefix, kind):
    def step(cache):
        with torch.no_grad():
            return tiny_llama(prompt(3), past_key_values=cache).logits[0, -1].tolist()

    expected, cache = step(prefilled(tiny_llama, prefix, kind)), prefilled(tiny_llama, prefix, kind)
    read, write = os.pipe()
    pids = []

    def fork(*_):
        hook.remove()
        pids.append(os.fork())

    hook = tiny_llama.model.layers[2].register_forward_pre_hook(fork)
    logits = step(cache)
    if pids == [0]:
        os.write(write, json.dumps(logits).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(pids[0], 0)

    assert logits == expected
    assert json.loads(said) == expected


def test_a_copy_in_the_child_and_its_original_in_the_parent(tiny_llama, prefix, answer):
    for kind in KINDS:
        expected = [answer(seed, kind=kind) for seed in (1, 2, 3)]
        cache = prefilled(tiny_llama, prefix, kind)
        twin = copy.deepcopy(cache)

        child = Child(lambda: [answer(1, copy.deepcopy(cache)), answer(2, twin)])

        assert answer(3, cache) == expected[2]
        assert child.result() == expected[:2]
        assert answer(1, twin) == expected[0]


def test_a_loaded_cache_and_a_capture_go_on_in_both(tiny_llama, prompt, prefix, tmp_path):
    path = tmp_path / "cache.safetensors"
    dkv.hf.save(tiny_llama, prefix, path)

    def say(cache, seed):
        return dkv.hf.generate(tiny_llama, cache, prompt(4, seed=seed), max_new_tokens=6, do_sample=False)[0].tolist()

    expected = [say(dkv.hf.load(path, tiny_llama), seed) for seed in (1, 2)]
    cache, capture = dkv.hf.load(path, tiny_llama), dkv.hf.Capture(tiny_llama)
    greedy(tiny_llama, prefix, 3, past_key_values=capture)

    def work():
        text = say(cache, 1)
        cache.reset()
        capture.reset()
        return text

    child = Child(work)
    assert [child.result(), say(cache, 2)] == expected
    dkv.hf.save(capture, tmp_path / "capture.safetensors")
    fresh = dkv.hf.Capture(tiny_llama)
    greedy(tiny_llama, prefix, 3, past_key_values=fresh)
    dkv.hf.save(fresh, tmp_path / "fresh.safetensors")
    assert (tmp_path / "capture.safetensors").read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()


def test_multiprocessings_fork_counts_and_its_child_ends(tiny_llama, prefix, answer):
    expected, cache, before = answer(1), prefilled(tiny_llama, prefix, "whole"), forks.count()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    process = context.Process(target=lambda: queue.put(answer(2, cache)))
    process.start()
    text = queue.get()
    process.join(CHILD_S)

    assert process.exitcode == 0 and forks.count() == before + 1
    assert text == answer(2)
    assert answer(1, cache) == expected


def test_an_arena_is_given_back_by_the_process_that_made_it():
    arena = dkv.Arena(1 << 16)
    arena.buffer[:] = b"\1" * (1 << 16)

    def work():
        with pytest.raises(dkv.DkvError, match=r"^this arena belongs to the process before fork\(\), which would lose its "
                                               "rows: destroy it here instead$") as refused:  # fmt: skip
            arena.release(0, 1 << 16)
        own = dkv.Arena(1 << 16)
        own.release(0, 1 << 16)
        return refused.value.name

    assert Child(work).result() == "bad_state"
    assert arena.allocated_bytes == 1 << 16 and arena.buffer[0] == 1
    arena.release(0, 1 << 16)
    assert arena.allocated_bytes == 0


# ---------------------------------------------------------------- a real dkvd


SCRIPT = f"""
import json, os, sys, time, torch
sys.path[:0] = [{str(ROOT / "tests" / "python")!r}, {str(ROOT / "tests" / "support")!r}]
from conftest import make_tiny_llama
import dkv, dkv.hf

model, endpoint = make_tiny_llama(), sys.argv[1]
prefix = torch.arange(2, 302)[None]

def text(cache, seed):
    question = torch.cat([prefix, torch.arange(seed, seed + 9)[None]], dim=1)
    return model.generate(question, attention_mask=torch.ones_like(question), max_new_tokens=8, do_sample=False,
                          past_key_values=cache)[0, 309:].tolist()

def made(**options):
    cache = dkv.hf.Cache(model, policy="snapkv", capacity=96, endpoint=endpoint, timeout_s=60, **options)
    with torch.no_grad():
        model(prefix, past_key_values=cache)
    assert cache.report().compressed, cache.report().failure
    return cache
"""


def run_script(sidecar, body: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + body, sidecar.endpoint], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.long
@pytest.mark.e2e
def test_a_child_attaches_by_itself_and_ends_like_any_process(sidecar):
    """Ends by itself, so that every destructor of its parent's engine, session and arenas runs in it."""
    process = run_script(sidecar, """
cache = made()
engine = dkv.Engine(dkv.Geometry(4, 6, 2, 16, "f32"), endpoint=endpoint)
session = engine.open_session(300)
child = os.fork()
if child == 0:
    try:
        engine.open_session(300)
    except dkv.DkvError as error:
        print(error.name, error, flush=True)
    session.close(); engine.close()
    print(text(cache, 5) == text(made(), 5), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(session.poll(0).kind == dkv.EventKind.NONE and session.failure is None, flush=True)
print(text(cache, 7) == text(made(), 7), flush=True)
listed = engine.state
print(listed.attached, listed.sessions_failed)
""")  # fmt: skip

    said, _ = process.communicate(timeout=CHILD_S)

    assert process.returncode == 0
    assert said.splitlines() == [
        "bad_state this engine belongs to the process before fork(): open one here", "True", "True", "True", "True 0",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.e2e
def test_a_killed_parent_is_missed_though_its_child_goes_on(sidecar):
    process = run_script(sidecar, """
cache = made()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.02)
    same = text(cache, 5) == text(made(), 5)
    print(same, flush=True)
    time.sleep(60)
time.sleep(600)
""")  # fmt: skip
    child = int(process.stdout.readline())

    process.kill()
    process.wait()

    try:
        assert process.stdout.readline() == "True\n"
        alive = lambda: [e["pid"] for e in json.loads(sidecar.dkv("--json", "instances").stdout)["instances"] if e["alive"]]
        assert waited_for(lambda: alive() == [child], "the parent to be missed")
    finally:
        os.kill(child, signal.SIGKILL)
