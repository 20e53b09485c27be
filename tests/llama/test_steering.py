"""An attached llama.cpp is shown and steered from a shell, while it runs."""

from __future__ import annotations

import json
import re

import pytest
from llama_process import dkvd, document, gguf_file, llama  # noqa: F401

# ruff: noqa: F811 - fixtures are imported by their names.
pytestmark = [pytest.mark.model, pytest.mark.e2e]

WISH = {"name": "snapkv", "capacity": 256}


def living(dkvd) -> list[dict]:
    return [one for one in json.loads(dkvd.dkv("--json", "instances").stdout)["instances"] if one["alive"]]


@pytest.mark.sample
def test_what_a_shell_sets_is_what_the_next_prompt_is_compressed_with(llama, document, dkvd):
    llama.open(cells=1024)

    def next_prompt(wish: dict | None) -> tuple[str, int]:
        llama.forget()
        llama.prefill(tokens=document(600), chunk=400)
        report = llama.compress(**({"policy": wish} if wish else {}))
        assert report["compressed"], report
        return report["policy"], report["cells"]

    assert next_prompt(WISH) == ("snapkv", 256)  # As the program asks, while the shell has said nothing.
    [engine] = living(dkvd)

    dkvd.dkv("policy", "set", "streamingllm", "--capacity", "192")
    assert next_prompt(None) == ("streamingllm", 192)
    assert next_prompt(WISH) == ("streamingllm", 192)  # The operator goes first (ADR 6).

    dkvd.dkv("policy", "set", "knorm", "--capacity", "128", "--instance", engine["instance"])
    assert next_prompt(WISH) == ("knorm", 128)

    dkvd.dkv("policy", "reset", "--instance", engine["instance"])
    dkvd.dkv("policy", "reset")
    assert next_prompt(WISH) == ("snapkv", 256)


def test_a_policy_that_is_set_while_a_prompt_is_read_is_the_one_that_compresses_it(llama, document, dkvd):
    """A prompt's session is opened when it is compressed."""
    llama.open(cells=1024)
    llama.prefill(tokens=document(300))

    dkvd.dkv("policy", "set", "knorm", "--capacity", "128")
    try:
        llama.prefill(tokens=document(600)[300:], position=300, begin=False)
        report = llama.compress(policy=WISH)
    finally:
        dkvd.dkv("policy", "reset")

    assert (report["policy"], report["cells"]) == ("knorm", 128), report


@pytest.mark.sample
def test_status_and_watch_show_it_from_its_first_compression_on(llama, document, dkvd):
    llama.open(cells=1024)
    llama.prefill(tokens=document(600))
    assert living(dkvd) == []

    report = llama.compress(policy=WISH)
    assert report["compressed"], report

    [engine] = living(dkvd)
    status, watched = (dkvd.dkv("--no-color", *words).stdout for words in (("status",), ("watch", "--once")))
    assert "engines   1 attached" in status and re.search(rf"{engine['instance']} .* llama.cpp 0\.\S+  SmolLM2 ", status), status
    assert re.search(rf"{engine['instance']}  pid \d+  llama.cpp 0\.\S+  SmolLM2 ", watched), watched
    assert re.search(rf"{report['session']}  \w+ +600 tokens  snapkv 256 .* kept 256/256/256 ", watched), watched
