"""vLLM's OpenAI server, two of them on one dkvd, which is killed at any moment under load and started again.

DKV_KILLS is how often (20), DKV_SEED the seed, which is printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import waited_for
from server import Server

STREAMS, PROMPT, ANSWER = 8, 400, 24
DKVD = ("--policy", "dynamickv", "--capacity", "128")


@pytest.fixture(scope="module")
def servers(tiny, sidecar, tmp_path_factory):
    folder, running = tmp_path_factory.mktemp("vllm"), []
    try:
        for at in range(2):
            running.append(Server(tiny, sidecar.endpoint, folder / f"server {at}.log"))
        for each in running:
            each.wait()
        yield running
    finally:
        for each in running:
            each.stop()


def blocks_given_back(server, prompt: list[int]) -> int:
    """Of the first answer whose plan came before its end: on a busy machine a few do without."""
    return next(filter(None, (server.answer(prompt, ANSWER)[1] for _ in range(10))), 0)


@pytest.mark.sample
def test_two_engines_share_a_sidecar(servers, sidecar, noise):
    prompt = noise(PROMPT)
    whole = [server.answer(prompt, ANSWER, "off") for server in servers]
    short = [blocks_given_back(server, prompt) for server in servers]

    assert whole[0] == whole[1] and whole[0][1] == 0
    assert short[0] == short[1] > 0
    engines = json.loads(sidecar.dkv("savings", "--json").stdout)["instances"]
    assert len(engines) == 2 and all(each["savings"]["bytes_dropped"] > 0 for each in engines)

    sidecar.dkv("policy", "set", "dynamickv", "--capacity", "40", "--instance", engines[0]["instance"])
    steered = [blocks_given_back(server, prompt) for server in servers]
    sidecar.dkv("policy", "reset", "--instance", engines[0]["instance"])

    assert min(steered) == short[0] < max(steered)


def test_a_dkvd_that_hangs_holds_no_request_up(servers, sidecar, noise):
    prompts = [noise(PROMPT - 7 * at, seed=at) for at in range(STREAMS)]
    whole = [servers[0].answer(prompt, ANSWER, "off")[0] for prompt in prompts]
    sidecar.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(STREAMS) as clients:
            for _ in range(2):  # The second time the engine knows.
                answers = list(clients.map(lambda prompt: servers[0].answer(prompt, ANSWER), prompts))
                assert answers == [(tokens, 0) for tokens in whole]
    finally:
        sidecar.process.send_signal(signal.SIGCONT)

    waited_for(lambda: servers[0].answer(prompts[0], ANSWER)[1] > 0, "compression to go on", 300)


class Load:
    """Clients that ask one request after another: every second one a stream that stays whole."""

    def __init__(self, servers: list[Server], prompts: list[list[int]], whole: list[list[int]]):
        self._servers, self._prompts, self._whole = servers, prompts, whole
        self.compressed = [0] * len(servers)
        self.streamed = self.kept_whole = 0
        self.wrong: list = []
        self._lock, self._ends = threading.Lock(), threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(at,)) for at in range(STREAMS)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_) -> None:
        self._ends.set()
        for client in self._clients:
            client.join()

    def _ask(self, at: int) -> None:
        which = at % len(self._servers)
        server, streams = self._servers[which], at < STREAMS // 2
        while not self._ends.is_set():
            try:
                if streams:
                    said, given_back = server.stream(self._prompts[at], ANSWER, "off"), 0
                else:
                    said, given_back = server.answer(self._prompts[at], ANSWER)
            except Exception as error:
                with self._lock:
                    self.wrong.append((at, repr(error)))
                return
            with self._lock:
                self.streamed += streams
                self.kept_whole += not streams and given_back == 0
                self.compressed[which] += given_back > 0
                if len(said) != ANSWER or given_back == 0 and said != self._whole[at]:
                    self.wrong.append((at, given_back, said))
            streams = not streams


@pytest.mark.sample
def test_a_dkvd_that_is_killed_under_load_fails_no_request(servers, sidecar, noise):
    kills, seed = int(os.environ.get("DKV_KILLS", "20")), int(os.environ.get("DKV_SEED", "1"))
    print(f"DKV_KILLS={kills} DKV_SEED={seed}", flush=True)
    moments = random.Random(seed)
    prompts = [noise(PROMPT - 7 * at, seed=at) for at in range(STREAMS)]
    whole = [servers[0].answer(prompt, ANSWER, "off")[0] for prompt in prompts]

    with Load(servers, prompts, whole) as load:
        for _ in range(kills):
            time.sleep(moments.uniform(0, 0.5))  # Any moment of a prefill, a plan or a decode.
            sidecar.kill()
            time.sleep(moments.uniform(0, 0.2))
            before = list(load.compressed)
            sidecar.start(*DKVD)
            # By the new dkvd: one of each engine's requests may have had the old one's plan.
            waited_for(
                lambda: load.wrong or all(now > then + 1 for now, then in zip(load.compressed, before)),
                "both engines to compress again",
                300,
            )
            assert not load.wrong, load.wrong

    assert not load.wrong, load.wrong
    print(f"{load.compressed} compressed, {load.kept_whole} left whole, {load.streamed} streamed", flush=True)
    assert load.kept_whole > 0 and load.streamed > 0
    for server in servers:
        waited_for(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, "every block to come back")
