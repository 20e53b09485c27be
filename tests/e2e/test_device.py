"""What only an engine on a GPU can do wrong. On the emulation: DKV_TEST_DEVICE=cuda, DKV_BIN_DIR=…/emulated/bin."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from engines import CAPACITY, DEVICE, LAYERS, CEngine, run, status
from processes import Sidecar, program, waited_for

pytestmark = [pytest.mark.skipif(not DEVICE, reason="DKV_TEST_DEVICE is not set"), pytest.mark.sample]


@pytest.fixture
def start(tmp_path_factory, monkeypatch):
    """start(*flags, **environment): a dkvd with an environment of its own."""
    running: list[Sidecar] = []

    def started(*flags: str, **environment: str) -> Sidecar:
        folder = tmp_path_factory.mktemp("dkvd")
        folder.chmod(0o700)
        with monkeypatch.context() as scope:
            for name, value in environment.items():
                scope.setenv(name, value)
            running.append(Sidecar(folder))
            return running[-1].start(*flags)

    yield started
    for sidecar in running:
        sidecar.stop()


@pytest.mark.parametrize("policy", ["streamingllm", "snapkv", "pyramidkv", "dynamickv"])
def test_a_gpu_keeps_what_the_cpu_keeps(sidecar, policy):
    flags = ["--policy", policy, "--capacity", str(CAPACITY), "--dtype", "f32"]

    _, on_cpu = run(sidecar, *flags, device=None)
    _, on_gpu = run(sidecar, *flags)

    assert on_cpu["status"] == on_gpu["status"] == "ok"
    assert on_gpu["lengths"] == on_cpu["lengths"]
    assert on_gpu["positions"] == on_cpu["positions"]
    assert on_gpu["rows_wrong"] == 0


def test_an_unknown_gpu_is_refused_by_the_library_in_one_line(sidecar):
    unknown = "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff"

    done = subprocess.run(
        [program("dkv_c_engine"), "--endpoint", sidecar.endpoint, "--device", unknown], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"dkv_c_engine: device '{unknown}' is not one of this process's: GPU-")
    assert len(done.stderr.splitlines()) == 1


def test_a_gpu_that_the_sidecar_has_not_means_an_uncompressed_run(start):
    two = {"CUDAEMU_DEVICES": "2"}
    sidecar = start(**two, CUDA_VISIBLE_DEVICES="0")

    code, outcome = run(sidecar, "--timeout-ms", "1000", **two, CUDA_VISIBLE_DEVICES="1")

    assert code == 3
    assert outcome["status"] == "unsupported"
    assert "GPU-" in outcome["error"]
    assert outcome["forms"] == ["full"] * LAYERS


def test_ordinals_may_differ(start):
    two = {"CUDAEMU_DEVICES": "2"}
    sidecar = start(**two, CUDA_VISIBLE_DEVICES="1,0")

    code, outcome = run(sidecar, "--policy", "snapkv", "--capacity", str(CAPACITY), **two)

    assert (code, outcome["error"], outcome["rows_wrong"]) == (0, "", 0)


def test_an_event_that_never_happens_ends_the_session_at_its_deadline_and_nothing_else(start):
    sidecar = start("--event-timeout-ms", "300")
    flags = ["--policy", "snapkv", "--capacity", str(CAPACITY)]

    # Freeing memory waits for the stalled stream, on a GPU too: nothing is given back before the end.
    code, stalled = run(sidecar, *flags, "--stall-at-layer", "2", "--no-progressive")
    assert code == 3
    assert stalled["status"] == "deadline_exceeded"
    assert "packed" not in stalled["forms"]

    code, outcome = run(sidecar, *flags)
    assert (code, outcome["error"], outcome["rows_wrong"]) == (0, "", 0)


def test_words_of_device_memory_stand_in_for_events(sidecar):
    code, outcome = run(sidecar, "--policy", "snapkv", "--capacity", str(CAPACITY), DKV_CUDA_EVENTS="timeline")

    assert (code, outcome["error"], outcome["rows_wrong"]) == (0, "", 0)


def test_a_killed_engine_leaves_the_sidecar_to_the_others(sidecar):
    flags = ("--policy", "snapkv", "--capacity", str(CAPACITY))
    doomed = CEngine(sidecar, *flags, "--pause-at-layer", "3")
    pid = doomed.line()["pid"]
    other = CEngine(sidecar, *flags, "--pause-at-layer", "3", "--seed", "2")
    other.line()
    assert waited_for(lambda: status(sidecar)["mapped_bytes"] > 0, "mappings")

    os.kill(pid, signal.SIGKILL)
    doomed.process.communicate()
    waited_for(lambda: status(sidecar)["instances_attached"] == 1, "the engine to be gone")
    other.go_on()
    code, lines = other.end()

    assert (code, lines[-1]["error"], lines[-1]["rows_wrong"]) == (0, "", 0)
    waited_for(lambda: status(sidecar)["mapped_bytes"] == 0, "the mappings to be gone")


def test_engines_on_the_cpu_and_on_a_gpu_share_a_sidecar(sidecar):
    flags = ("--policy", "pyramidkv", "--capacity", str(CAPACITY), "--sessions", "3")
    engines = [CEngine(sidecar, *flags, device=None), CEngine(sidecar, *flags), CEngine(sidecar, *flags, "--seed", "9")]

    for engine in engines:
        code, lines = engine.end()
        assert code == 0
        assert [line["rows_wrong"] for line in lines] == [0] * 3


@pytest.mark.parametrize("driver, code", [("none", "code 35"), ("stub", "code 34"), ("no_device", "code 100")])
def test_without_a_driver_everything_starts_says_no_gpu_and_works_on_the_cpu(start, driver, code):
    sidecar = start(CUDAEMU_DRIVER=driver)
    _, on_cpu = run(sidecar, "--policy", "snapkv", "--capacity", str(CAPACITY), device=None, CUDAEMU_DRIVER=driver)
    assert (on_cpu["status"], on_cpu["rows_wrong"]) == ("ok", 0)

    done = subprocess.run(
        [program("dkv_c_engine"), "--device", "cuda"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDAEMU_DRIVER": driver},
    )
    assert done.returncode == 1
    assert "no GPU" in done.stderr and code in done.stderr
