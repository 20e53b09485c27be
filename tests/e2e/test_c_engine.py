"""Two processes: a real dkvd, and an engine in plain C that knows nothing but dkv.h.

With DKV_TEST_DEVICE=cuda its cache is on a GPU: the same tests a second time (on the emulation,
DKV_BIN_DIR=…/emulated/bin).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from engines import ARENAS, TOKENS, CEngine, CAPACITY, KV_HEADS, LAYERS, run, status
from processes import program, waited_for


@pytest.mark.sample
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("policy", ["streamingllm", "snapkv", "pyramidkv", "dynamickv"])
def test_every_packed_row_is_the_row_it_was(sidecar, policy, dtype):
    code, outcome = run(sidecar, "--policy", policy, "--capacity", str(CAPACITY), "--dtype", dtype)

    assert (code, outcome["status"], outcome["error"]) == (0, "ok", "")
    assert outcome["forms"] == ["packed"] * LAYERS
    assert outcome["rows_wrong"] == 0
    assert sum(map(sum, outcome["lengths"])) == LAYERS * KV_HEADS * CAPACITY
    assert all(0 < mass <= 1 for mass in outcome["mass_kept"])


@pytest.mark.parametrize("arena", ARENAS)
def test_the_system_takes_the_dropped_bytes_back(sidecar, arena):
    code, outcome = run(sidecar, "--policy", "snapkv", "--capacity", str(CAPACITY), "--arena", arena, tokens=4000)

    dropped = outcome["bytes_full"] - outcome["bytes_kept"]
    assert code == 0
    assert outcome["bytes_before"] - outcome["bytes_after"] >= 0.95 * dropped
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("dkv-")]


def test_without_progressive_release_the_outcome_is_the_same(sidecar):
    flags = ["--policy", "dynamickv", "--capacity", str(CAPACITY)]

    _, progressive = run(sidecar, *flags, "--settle")
    _, whole = run(sidecar, *flags, "--no-progressive")

    assert progressive["lengths"] == whole["lengths"]
    assert whole["rows_wrong"] == 0
    assert progressive["bytes_peak"] < whole["bytes_peak"]


def test_fullkv_and_short_prompts_stay_where_they_are(sidecar):
    for flags, tokens in ((["--policy", "fullkv"], TOKENS), (["--capacity", "512"], 512), (["--capacity", "512"], 20)):
        code, outcome = run(sidecar, *flags, tokens=tokens)

        assert (code, outcome["compress"], outcome["forms"]) == (0, False, ["full"] * LAYERS)


@pytest.mark.sample
@pytest.mark.parametrize(
    "flags, error, words",
    [
        (["--policy", "nosuch"], "not_found", "nosuch"),
        (["--policy", "snapkv", "--capacity", "16"], "invalid_argument", "16"),
        (["--policy", "snapkv", "--kernel", "4"], "invalid_argument", "4"),
        (["--policy", "snapkv", "--wrong-dtype"], "invalid_argument", "f16"),
        (["--policy", "snapkv", "--offset-past-region"], "invalid_argument", "values end at byte"),
    ],
)
def test_a_bad_request_is_a_typed_error_and_the_cache_stays_whole(sidecar, flags, error, words):
    code, outcome = run(sidecar, *flags)

    assert code == 3
    assert outcome["status"] == error
    assert words in outcome["error"] and "\n" not in outcome["error"]
    assert outcome["forms"] == ["full"] * LAYERS


def test_the_operators_policy_goes_before_the_engines_wish(sidecar):
    sidecar.dkv("policy", "set", "snapkv", "--capacity", "64")

    _, outcome = run(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY))

    assert (outcome["policy"], outcome["capacity"]) == ("snapkv", 64)
    assert outcome["lengths"] == [[64] * KV_HEADS] * LAYERS


def test_several_engines_with_several_sessions_each(sidecar):
    engines = [CEngine(sidecar, "--capacity", str(CAPACITY), "--sessions", "5", "--seed", str(seed)) for seed in (1, 2, 3)]

    for engine in engines:
        code, lines = engine.end()
        assert code == 0
        assert [line["rows_wrong"] for line in lines] == [0] * 5
    assert status(sidecar)["savings"]["sessions"] == 15


def test_no_sidecar_means_an_uncompressed_run_and_one_clear_line(sidecar):
    sidecar.stop()

    code, outcome = run(sidecar, "--timeout-ms", "500")

    assert code == 3
    assert outcome["status"] == "unavailable"
    assert sidecar.endpoint in outcome["error"]
    assert outcome["forms"] == ["full"] * LAYERS


@pytest.mark.sample
def test_killing_the_sidecar_in_prefill_leaves_every_layer_readable(sidecar):
    engine = CEngine(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY), "--pause-at-layer", "4")
    assert engine.line()["paused_at_layer"] == 4

    sidecar.kill()
    engine.go_on()
    code, lines = engine.end()

    assert code == 3
    assert lines[-1]["status"] == "unavailable"
    assert set(lines[-1]["forms"]) <= {"full", "staged"}
    assert lines[-1]["rows_wrong"] == 0


@pytest.mark.sample
def test_a_restarted_sidecar_serves_the_next_session_of_the_same_engine(sidecar):
    flags = ("--capacity", str(CAPACITY), "--sessions", "2", "--pause-at-layer", "2", "--timeout-ms", "5000")
    engine = CEngine(sidecar, *flags)
    engine.line()
    sidecar.kill()
    sidecar.start()
    engine.go_on()
    first = engine.line()
    engine.line()  # The second session's pause.
    engine.go_on()
    code, lines = engine.end()

    assert code == 3
    assert first["status"] == "unavailable"
    assert lines[-1]["status"] == "ok" and lines[-1]["committed"]


@pytest.mark.sample
def test_a_killed_engine_is_gone_its_memory_dropped_and_nothing_is_left_behind(sidecar):
    engine = CEngine(sidecar, "--arena", ARENAS[1], "--pause-at-layer", "3", "--capacity", str(CAPACITY))
    pid = engine.line()["pid"]
    assert waited_for(lambda: status(sidecar)["mapped_bytes"] > 0, "mappings")

    os.kill(pid, signal.SIGKILL)
    engine.process.wait()

    waited_for(lambda: status(sidecar)["instances_attached"] == 0, "the engine to be gone")
    gone = status(sidecar)
    assert gone["mapped_bytes"] == 0
    assert any(str(pid) in line for line in gone["gone"])
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("dkv-")]


def test_a_second_sidecar_at_the_same_place_is_refused(sidecar):
    second = subprocess.run([program("dkvd"), "--endpoint", sidecar.endpoint], capture_output=True, text=True, timeout=20)

    assert second.returncode != 0
    assert "already listens" in second.stderr
    assert status(sidecar)["pid"] == sidecar.process.pid


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--policy", "nosuch"], "nosuch"),
        (["--capacity", "16"], "16"),
        (["--kernel", "6"], "6"),
        (["--endpoint", "nowhere"], "nowhere"),
        (["--endpoint", "tcp://0.0.0.0:5555"], "0.0.0.0"),
    ],
)
def test_the_daemon_refuses_bad_flags_in_one_line(flags, words):
    done = subprocess.run([program("dkvd"), *flags], capture_output=True, text=True, timeout=20)

    assert done.returncode not in (0, 70)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_stop_ends_the_daemon_and_removes_its_socket(sidecar):
    sidecar.dkv("stop")

    assert sidecar.process.wait(10) == 0
    assert not os.path.exists(sidecar.endpoint.removeprefix("ipc://"))
    after = sidecar.dkv("status", check=False)
    assert after.returncode == 3
    assert re.fullmatch(r"dkv: .+\n", after.stderr)
