"""`dkv llama run`: an unpatched llama-server whose prompts a dkvd compresses while it serves them.

The model is SmolLM2's first six layers: what it says is nonsense, of which every token can be checked.
"""

from __future__ import annotations

import concurrent.futures
import json

import pytest
from conftest import LICENCE, Server, dkv, model
from llama_process import dkvd, document, gguf_file, llama  # noqa: F401
from processes import ROOT, Sidecar, program, waited_for

# ruff: noqa: F811 - fixtures are imported by their names.
pytestmark = [pytest.mark.model, pytest.mark.e2e]

TOKENS, SAID = 600, 24
OLDER = ROOT / ".venv-llama/bin/python"  # b9294
POLICY = ("--policy", "snapkv", "--capacity", "48")


class Live(Server):
    def __init__(self, sidecar: Sidecar, folder, gguf, *, slots: int = 1, flags: tuple[str, ...] = (), **more):
        self.errors = folder / "server.log"
        run = (program("dkv"), "--endpoint", sidecar.endpoint, "llama", "run")
        super().__init__(folder, 2048, slots, flags=flags, gguf=gguf, before=run, errors=self.errors, **more)

    def says(self) -> list[str]:
        return [line for line in self.errors.read_text().splitlines() if line.startswith("dkv: ")]


def ask(server: Server, prompt: list[int], tokens: int = SAID, slot: int = 0) -> tuple[list[int], int, int]:
    """What it said, and how many tokens of the prompt it computed and found."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "id_slot": slot, "return_tokens": True, "ignore_eos": True}
    answer = server.post("/completion", body)
    return answer["tokens"], answer["timings"]["prompt_n"], answer["timings"]["cache_n"]


def sessions(sidecar: Sidecar) -> list[tuple[int, str]]:
    """Of each prompt that was compressed: its tokens, and by what."""
    listed = json.loads(sidecar.dkv("--json", "sessions").stdout)["sessions"]
    return [(one["prompt_tokens"], one["policy"]["name"]) for one in listed if one["state"] in ("adopted", "closed")]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steered")
    folder.chmod(0o700)
    running = Sidecar(folder).start(*POLICY)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def live(sidecar, gguf_file, tmp_path_factory):
    with Live(sidecar, tmp_path_factory.mktemp("live"), gguf_file) as running:
        yield running


@pytest.fixture(scope="module")
def plain(gguf_file):
    """The same server without dkv."""
    with Server(None, 2048, gguf=gguf_file) as running:
        yield running


@pytest.mark.sample
def test_a_prompt_is_compressed_as_an_attached_context_compresses_it(live, plain, llama, document, sidecar):
    prompt = document(TOKENS)
    llama.open(cells=2048)
    first = llama.prefill(tokens=prompt)["next"]
    assert llama.compress(policy={"name": "snapkv", "capacity": 48})["compressed"]
    expected = [first, *llama.go_on(tokens=[first], position=TOKENS, count=SAID - 1)["tokens"]]
    before = sessions(sidecar)

    said, computed, _ = ask(live, prompt)

    assert computed == TOKENS
    assert said == expected
    assert said != ask(plain, prompt)[0]  # The cache is another one.
    assert len(sessions(sidecar)) == len(before) + 1


def test_the_same_prompt_again_goes_on_with_the_compressed_cache(live, document):
    prompt = document(TOKENS)
    ask(live, prompt)

    said, computed, found = ask(live, prompt)

    assert (computed, found) == (1, TOKENS - 1)
    assert said[0] != 0


def test_a_turn_that_goes_on_computes_the_new_tokens_alone(live, document):
    prompt = document(TOKENS)
    said, _, _ = ask(live, prompt)

    turn = prompt + said + document(40)
    _, computed, found = ask(live, turn)

    assert computed + found == len(turn)
    assert computed <= 42  # What was said last was not decoded yet.


def test_a_prompt_that_leaves_a_compressed_one_is_computed_anew(live, plain, document, sidecar):
    ask(live, document(TOKENS))
    other = document(TOKENS)[:300] + document(100)[::-1]
    sidecar.dkv("policy", "set", "fullkv")
    try:
        said, computed, _ = ask(live, other)
    finally:
        sidecar.dkv("policy", "reset")

    assert computed == len(other)
    assert said == ask(plain, other)[0]


def test_a_prompt_whose_begin_is_in_the_cache_whole_is_compressed(live, document, sidecar):
    """A conversation that was short grows."""
    begin = document(40)[::-1]
    ask(live, begin, 4)  # Fewer tokens than the capacity: it stays whole.
    grown = begin + document(400)
    before = len(sessions(sidecar))

    _, computed, found = ask(live, grown)

    assert (computed, found) == (400, 40)
    assert len(sessions(sidecar)) == before + 1
    assert ask(live, grown)[1] == 1


def test_a_shell_steers_it(live, document, sidecar):
    sidecar.dkv("policy", "set", "streamingllm", "--capacity", "64")
    try:
        ask(live, document(500)[::-1])
    finally:
        sidecar.dkv("policy", "reset")

    assert (500, "streamingllm") in sessions(sidecar)
    engines = json.loads(sidecar.dkv("--json", "instances").stdout)["instances"]
    [engine] = [one for one in engines if one["pid"] == live.process.pid]
    assert engine["engine"].startswith("llama.cpp ") and "mol" in engine["model"]


def test_a_slot_that_was_saved_compressed_goes_on_when_it_is_restored(live, document, sidecar):
    prompt = document(TOKENS)
    ask(live, prompt)
    live.slot("save", "compressed.bin")
    ask(live, document(50)[::-1], 1)
    live.slot("restore", "compressed.bin")

    said, computed, _ = ask(live, prompt + [17] * 20)
    assert computed <= TOKENS + 20 and len(said) == SAID

    live.slot("restore", "compressed.bin")
    _, computed, _ = ask(live, prompt[:200] + [17] * 20)
    assert computed == 220  # Cells of a cut sequence are not those of these positions.


def test_answers_of_several_slots_at_once_are_those_of_a_server_without_dkv(sidecar, gguf_file, document, tmp_path, plain):
    prompts = [document(400), document(500)[::-1]]
    whole = [ask(plain, prompt)[0] for prompt in prompts]
    with Live(sidecar, tmp_path, gguf_file, slots=2, flags=("--kv-unified",)) as server:
        ask(server, document(20), 1, 0)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            said = list(pool.map(lambda at: ask(server, prompts[at], SAID, at)[0], range(2)))
        alone = ask(server, document(300), SAID, 1)
        again = ask(server, document(300), SAID, 1)

    # Which of the two was alone in its first batch is chance: that one may be compressed.
    assert any(one == other for one, other in zip(said, whole))
    assert any("another sequence" in line for line in server.says()) or said != whole
    assert alone[1] == 300 and again[1] == 1


def test_without_a_dkvd_and_with_one_that_is_killed_prompts_stay_whole(plain, gguf_file, document, tmp_path):
    tmp_path.chmod(0o700)
    sidecar = Sidecar(tmp_path)
    prompts = [document(500), document(400)[::-1], document(450), document(350)[::-1]]
    whole = [ask(plain, prompt)[0] for prompt in prompts]
    with Live(sidecar, tmp_path, gguf_file) as server:
        assert ask(server, prompts[0])[0] == whole[0]
        sidecar.start(*POLICY)
        waited_for(lambda: ask(server, prompts[1])[0] != whole[1], "a prompt to be compressed")
        sidecar.kill()
        assert ask(server, prompts[2])[0] == whole[2]
        sidecar.start(*POLICY)
        waited_for(lambda: ask(server, prompts[3])[0] != whole[3], "a prompt to be compressed")
        sidecar.stop()

    assert any("a prompt is left whole" in line for line in server.says())


def test_context_shift_and_cache_reuse_are_off(sidecar, gguf_file, tmp_path):
    with Live(sidecar, tmp_path, gguf_file, flags=("--cache-reuse", "64")) as server:
        server.complete("A short prompt.", 2)

    assert "not supported" in (tmp_path / "server.log").read_text()


def test_several_answers_to_one_prompt_are_those_of_a_server_without_dkv(sidecar, gguf_file, document, tmp_path):
    """llama.cpp copies a sequence's rows only with the next batch."""
    body = {"prompt": document(400), "n_predict": SAID, "temperature": 0, "n_cmpl": 2, "return_tokens": True, "ignore_eos": True}

    def answers(server: Server) -> list[list[int]]:
        return [one["tokens"] for one in server.post("/completion", body)]

    with Server(None, 2048, 2, gguf=gguf_file) as server:
        expected = answers(server)
    with Live(sidecar, tmp_path, gguf_file, slots=2) as server:
        said = answers(server)

    assert len(said) == 2 and said == expected
    assert any("its sequence was copied" in line for line in server.says())


@pytest.mark.sample
def test_what_cannot_be_run_is_refused_by_name(tmp_path):
    assert "which program?" in dkv("llama", "run", code=1).stderr
    assert "no-such-server is no program" in dkv("llama", "run", "no-such-server", "-m", "x", code=None).stderr
    static = tmp_path / "llama-server"
    static.write_bytes((b"\x7fELF\x02\x01\x01" + bytes(57)))
    static.chmod(0o755)
    assert "loads no libraries" in dkv("llama", "run", static, code=None).stderr


def test_memory_goes_back_while_the_server_runs(sidecar, tmp_path):
    """SmolLM2 itself."""
    with Live(sidecar, tmp_path, model()) as server:
        read = server.complete(LICENCE[:7500], 1)
        held = server.private_mib()
        server.complete(LICENCE[:7500], 8)
        waited_for(lambda: server.private_mib() < held - 30, "the pages to go back")

    assert read["timings"]["prompt_n"] > 1500
    assert any(line.startswith("dkv: attached to ") for line in server.says())


@pytest.mark.skipif(not OLDER.exists(), reason="make test-llama installs it")
def test_an_older_llama_cpp_is_left_as_it_is(sidecar, gguf_file, document, tmp_path, plain):
    with Live(sidecar, tmp_path, gguf_file, python=str(OLDER)) as server:
        said, computed, _ = ask(server, document(TOKENS))

    assert len(said) == SAID and computed == TOKENS
    assert any("no llama_version, so it is older than 0.4" in line for line in server.says())
