"""A real dkvd that stands still (SIGSTOP) instead of ending: one prompt waits for it, and no other one."""

from __future__ import annotations

import logging
import signal

import pytest
from processes import waited_for
from test_cache import greedy, plain
from test_e2e import at_layer, instances

import dkv.hf

pytestmark = pytest.mark.e2e

ASKED_AGAIN = "it is asked again in the background, next"


@pytest.fixture
def run(tiny_llama, prompt, sidecar):
    """Generates with a cache of its own: the text and the cache's report."""

    def generate() -> tuple[list[int], dkv.hf.Report]:
        cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=96, endpoint=sidecar.endpoint)
        return greedy(tiny_llama, prompt(300), 6, past_key_values=cache), cache.report()

    return generate


@pytest.fixture
def stopped(sidecar):
    """Stops the sidecar when called; it goes on with the test's end at the latest, so that it can be ended."""
    yield lambda: sidecar.process.send_signal(signal.SIGSTOP)
    sidecar.process.send_signal(signal.SIGCONT)


def test_a_stopped_sidecar_costs_one_prompt_its_deadline(tiny_llama, prompt, sidecar, run, stopped, caplog):
    expected = plain(tiny_llama, prompt(300), 6)
    assert run()[1].compressed
    stopped()

    with caplog.at_level(logging.WARNING, "dkv.hf"):
        first, *later = [run() for _ in range(8)]

    assert first[1].failure.endswith(f"the sidecar at {sidecar.endpoint} did not answer OpenSession in time")
    for text, report in later:
        assert text == expected and not report.compressed
        assert report.failure.startswith(f"deadline_exceeded: the sidecar at {sidecar.endpoint} has not answered for ")
        assert ASKED_AGAIN in report.failure
    assert len([record for record in caplog.records if ASKED_AGAIN in record.getMessage()]) == 1

    sidecar.process.send_signal(signal.SIGCONT)

    assert waited_for(lambda: run()[1].compressed, "the sidecar to be used again")
    assert len([engine for engine in instances(sidecar) if engine["alive"]]) == 1


def test_a_sidecar_that_stops_in_the_midst_of_a_prompt_costs_that_prompt_only(tiny_llama, prompt, sidecar, run, stopped):
    expected = plain(tiny_llama, prompt(300), 6)
    hook = at_layer(tiny_llama, 2, stopped)

    _, first = run()
    hook.remove()
    later = [run() for _ in range(4)]

    assert not first.compressed and first.failure is not None
    for text, report in later:
        assert text == expected
        assert ASKED_AGAIN in report.failure and report.waiting_seconds == 0
    sidecar.process.send_signal(signal.SIGCONT)
    assert waited_for(lambda: run()[1].compressed, "the sidecar to be used again")


def test_a_stopped_sidecar_that_is_replaced_is_not_waited_for(sidecar, run, stopped):
    assert run()[1].compressed
    stopped()
    run()
    assert ASKED_AGAIN in run()[1].failure

    sidecar.kill()
    sidecar.start()

    assert waited_for(lambda: run()[1].compressed, "the engine to find the new dkvd")
