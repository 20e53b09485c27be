"""dkvd is killed at every moment of a prompt: llama.cpp goes on with right text, and with a new dkvd as before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from llama_process import Llama, compressed, dkvd, document, gguf_file, llama  # noqa: F401
from processes import ROOT, Sidecar, waited_for

CHAOS = ROOT / "tools" / "chaos"
sys.path.insert(0, str(CHAOS))

from line import Proxy, Stop  # noqa: E402
from states import BEFORE, REACHED  # noqa: E402

# ruff: noqa: F811 - fixtures are imported by their names.
pytestmark = [pytest.mark.model, pytest.mark.e2e]

POLICY = {"name": "snapkv", "capacity": 128}
TOKENS = 400
# What comes of the prompt where dkvd dies as that message is on its way. `planned`: as far as the worker had come.
COMPRESSED = {"not attached": False, "attached": False, "open": False, "prefill": False, "planned": None, "committed": True}


def go_on(llama: Llama) -> list[int]:
    return llama.go_on(tokens=[5], position=TOKENS, count=12)["tokens"]


@pytest.fixture(scope="module")
def texts(llama, document) -> dict[bool, list[int]]:
    """What follows the prompt: whole, in a context without dkv; compressed, with a dkvd that lives."""
    llama.open(cells=512, plain=True)
    llama.prefill(tokens=document(TOKENS))
    whole = go_on(llama)
    llama.open(cells=512)
    assert compressed(llama, document(TOKENS), POLICY)["compressed"]
    both = {False: whole, True: go_on(llama)}
    assert both[False] != both[True]
    return both


@pytest.fixture
def mortal(tmp_path, gguf_file):
    """A dkvd, and a llama.cpp whose connection to it goes through a proxy that may stop it."""
    tmp_path.chmod(0o700)
    sidecar, started = Sidecar(tmp_path).start(), []

    def start(stop: Stop) -> Llama:
        proxy = Proxy(f"{tmp_path}/proxy", stop)
        lead = {"DKV_CHAOS_SIDECAR": f"{tmp_path}/dkvd.sock", "DKV_CHAOS_PROXY": proxy.path}
        through = tmp_path / "through.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", through, CHAOS / "through.c", "-ldl"], check=True)
        started.extend([Llama(gguf_file, sidecar.endpoint, LD_PRELOAD=str(through), **lead), proxy])
        return started[0]

    yield sidecar, start
    sidecar.stop()
    for one in started:
        one.close()
    for one in started[:1]:
        one.stop()


def goes_on_as_before(sidecar: Sidecar, llama: Llama, tokens: list[int], texts: dict) -> bool:
    """With a new dkvd, to which it attaches by itself."""
    sidecar.start()
    waited_for(lambda: json.loads(sidecar.dkv("--json", "instances").stdout)["instances"], "llama.cpp to come back")
    llama.forget()
    return compressed(llama, tokens, POLICY)["compressed"] and go_on(llama) == texts[True]


def is_right(report: dict, said: list[int], texts: dict) -> bool:
    """The text of what the report says was done, and a reason where nothing was."""
    return said == texts[report["compressed"]] and bool(report["reason"]) != report["compressed"]


@pytest.mark.parametrize("moment", COMPRESSED)
def test_a_dkvd_that_is_killed_at_a_message_leaves_right_text(mortal, document, texts, moment):
    sidecar, start = mortal
    stop = Stop({**BEFORE, **REACHED}[moment], lambda line, message: sidecar.kill())
    llama = start(stop)
    llama.open(cells=512, timeout_s=2)

    report = compressed(llama, document(TOKENS), POLICY)

    assert stop.done.is_set() and stop.error is None
    assert is_right(report, go_on(llama), texts), report
    assert COMPRESSED[moment] in (None, report["compressed"]), report
    assert goes_on_as_before(sidecar, llama, document(TOKENS), texts)


@pytest.mark.parametrize("moment", ["before begin", "between two parts of the prompt"])
def test_a_dkvd_that_is_killed_before_compress_leaves_right_text(mortal, document, texts, moment):
    sidecar, start = mortal
    llama = start(Stop(REACHED["closed"], lambda line, message: None))
    llama.open(cells=512, timeout_s=2)
    assert compressed(llama, document(TOKENS), POLICY)["compressed"]
    llama.forget()
    tokens = document(TOKENS)

    if moment == "before begin":
        sidecar.kill()
    llama.prefill(tokens=tokens[:200])
    if moment != "before begin":
        sidecar.kill()
    llama.prefill(tokens=tokens[200:], position=200, begin=False)
    report = llama.compress(policy=POLICY)

    assert not report["compressed"] and is_right(report, go_on(llama), texts), report
    assert goes_on_as_before(sidecar, llama, tokens, texts)
