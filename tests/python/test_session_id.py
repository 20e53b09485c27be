"""One id names a session in the engine's log, in its report, in the sidecar's log and in `dkv sessions`."""

from __future__ import annotations

import json
import logging

import pytest
from processes import Sidecar
from test_cache import greedy
from test_e2e import at_layer

import dkv.hf

pytestmark = pytest.mark.e2e


def test_the_id_of_a_session_is_the_same_everywhere(tiny_llama, prompt, tmp_path, caplog):
    sidecar = Sidecar(tmp_path).start("--log-format", "json")
    cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=64, endpoint=sidecar.endpoint, timeout_s=60)

    with caplog.at_level(logging.INFO, "dkv.hf"):
        greedy(tiny_llama, prompt(300), 2, past_key_values=cache)

    session = cache.report().session
    said = [record for record in caplog.records if getattr(record, "dkv_session", None) == session]
    assert [record.getMessage() for record in said] == [
        f"dkv: session {session}: the prompt of 300 tokens is compressed by snapkv"
    ]
    listed = json.loads(sidecar.dkv("--json", "sessions", session).stdout)["sessions"]
    assert [each["session"] for each in listed] == [session]
    logged = [json.loads(line) for line in sidecar.log.read_text().splitlines()]
    assert [line["session"] for line in logged if "session" in line] == [session]
    sidecar.stop()


def test_a_prompt_that_stays_whole_is_logged_with_its_session(tiny_llama, prompt, tmp_path, caplog):
    sidecar = Sidecar(tmp_path).start()
    cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=64, endpoint=sidecar.endpoint, timeout_s=2)
    hook = at_layer(tiny_llama, 2, sidecar.kill)

    greedy(tiny_llama, prompt(300), 2, past_key_values=cache)

    hook.remove()
    report = cache.report()
    assert report.failure is not None
    whole = [record for record in caplog.records if "generation goes on without compression" in record.getMessage()]
    assert [record.dkv_session for record in whole] == [report.session]
