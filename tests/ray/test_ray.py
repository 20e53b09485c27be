"""dkv-lab ray on a real local cluster: what comes out is what one process writes, also when workers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from dkv import programs
from dkv_lab import record, results
from safetensors.numpy import save_file

FILES, TOKENS, LAYERS = 24, 256, 4
GRID = ["--policy", "knorm,keydiff,streamingllm", "--capacity", "32,64", "--window", "8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Caches of normal numbers, and one file that is not a cache."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(1)
    for index in range(FILES):
        shape = (2, TOKENS, 16)
        rows = {f"layers.{layer}.{part}": rng.normal(size=shape).astype("f4") for layer in range(LAYERS) for part in ("keys", "values")}
        words = {"format": "dkv", "version": "1", "model": "a small one", "n_prompt": str(TOKENS)}
        save_file(rows, folder / f"c{index:02d}.safetensors", words)
    (folder / "notes.txt").write_text("not a cache")
    return folder


def dkv(*arguments) -> None:
    subprocess.run([programs.find("dkv"), *map(str, arguments)], check=True, capture_output=True)


def start(*arguments) -> subprocess.Popen:
    # Ctrl-C is for it, even where a shell started the tests in the background, which ignores it.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "dkv_lab", "ray", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments) -> str:
    process = start(*arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "sweep.jsonl"
    dkv("sweep", store, *GRID, "-o", path)
    return path.read_bytes()


def test_a_sweep_on_four_workers_is_that_of_one_process_byte_for_byte(store, whole, tmp_path):
    said = run("sweep", store, "-o", tmp_path / "r.jsonl", "--workers", 4, "--group", 2, "--", *GRID)

    assert (tmp_path / "r.jsonl").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
    assert f"{FILES} of {FILES} files" in said


def test_a_compaction_is_that_of_one_process_byte_for_byte(store, tmp_path):
    flags = ["--policy", "knorm", "--capacity", "32", "--window", "8"]
    dkv("compact", store, "-o", tmp_path / "one/", *flags)

    run("compact", store, "-o", tmp_path / "many", "--workers", 2, "--", *flags)

    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")
    assert len(bytes_of(tmp_path / "one")) == FILES


def test_a_group_whose_worker_is_killed_is_done_by_another(store, whole, tmp_path, monkeypatch):
    mark = f"killed-{os.getpid()}-{time.time_ns()}"
    monkeypatch.setenv("DKV_TEST_MARK", mark)  # Which workers are this test's: other drivers may run here.
    killed: list[int] = []
    process = start("sweep", store, "-o", tmp_path / "r.jsonl", "--workers", 2, "--group", 6, "--", *GRID)

    def kill() -> None:
        while process.poll() is None and len(killed) < 2:
            for worker in _marked(mark):
                if worker not in (process.pid, *killed) and len(killed) < 2:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    _, said = process.communicate(timeout=300)
    thread.join()

    assert process.returncode == 0, said
    assert len(killed) == 2
    assert (tmp_path / "r.jsonl").read_bytes() == whole


def test_an_evaluation_on_two_workers_is_that_of_one_process_byte_for_byte(tmp_path):
    flags = ["--policies", "snapkv,profile", "--capacity", "48", "--tokens", "200", "--needles", "3", "--texts", "2"]
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    command = [sys.executable, "-m", "dkv_lab", "eval", "smollm2", *flags, "--threads", "1", "-o", str(one)]
    subprocess.run(command, check=True, capture_output=True)

    said = run("eval", "smollm2", "-o", many, "--workers", 2, "--group", 3, "--", *flags)

    assert many.read_bytes() == one.read_bytes()
    assert results.budgets_path(many).read_bytes() == results.budgets_path(one).read_bytes()
    (whole,) = record.to_make_again(results.runs_path(many))
    (alone,) = record.to_make_again(results.runs_path(one))
    same = ("prompts", "profiles", "csv", "shard", "model")
    assert {key: whole[key] for key in same} == {key: alone[key] for key in same}
    assert said.splitlines()[-1] == "8 of 8 prompts"
    assert not list(tmp_path.glob(".*"))


def _marked(mark: str) -> list[int]:
    """Parents of the dkv processes that have this mark in their environment: Ray's workers."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and (path / "cmdline").read_bytes().split(b"\0")[0].endswith(b"/dkv"):
                if mark.encode() in (path / "environ").read_bytes():
                    found.append(int((path / "stat").read_text().rpartition(")")[2].split()[1]))
        except OSError:  # It ended meanwhile.
            continue
    return found


def test_a_run_that_is_stopped_goes_on(store, whole, tmp_path):
    process = start("sweep", store, "-o", tmp_path / "r.jsonl", "--workers", 1, "--group", 4, "--", *GRID)
    for line in process.stderr:
        if line.startswith("4 of "):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    parts = list((tmp_path / ".r.jsonl.parts").iterdir())
    assert any(path.read_bytes() and path.read_bytes() in whole for path in parts) and not (tmp_path / "r.jsonl").exists()
    run("sweep", store, "-o", tmp_path / "r.jsonl", "--workers", 1, "--group", 4, "--", *GRID)

    assert (tmp_path / "r.jsonl").read_bytes() == whole


def test_a_broken_file_fails_the_run_by_name_and_no_other_file(store, whole, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"broken")
    process = start("sweep", store, broken, "-o", tmp_path / "r.jsonl", "--workers", 2, "--", *GRID)
    _, said = process.communicate(timeout=300)

    assert process.returncode == 1
    assert f"dkv: {broken}: " in said
    assert f"{tmp_path / 'r.jsonl'}: not written: 1 of 4 groups failed" in said
    parts = list((tmp_path / ".r.jsonl.parts").iterdir())
    assert sorted(line for part in parts for line in part.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert not (tmp_path / "r.jsonl").exists()


def test_a_file_that_is_not_there_is_refused_before_a_cluster_is_started(tmp_path):
    process = start("sweep", tmp_path / "none", "-o", tmp_path / "r.jsonl", "--", *GRID)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert said == f"dkv: {tmp_path / 'none'}: No such file or directory\n" and not list(tmp_path.iterdir())
