"""dkv llama watch-slots over folders of slots that a real llama-server saved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import PROMPT, Server, dkv, model
from processes import program

OLD = 1_700_000_000  # Seconds since 1970.
BY_KEYS = ("--policy", "keydiff", "--ratio", "0.25")


def folder_of(saved: tuple[Path, int], folder: Path, count: int) -> list[Path]:
    """That many slots; the first is the oldest."""
    slots = []
    for number in range(count):
        slots.append(folder / f"slot{number:02}.bin")
        shutil.copy(saved[0], slots[-1])
        os.utime(slots[-1], (OLD + number, OLD + number))
    return slots


def watch(folder: Path, budget: int, *flags: object, code: int | None = 0) -> subprocess.CompletedProcess:
    return dkv("llama", "watch-slots", folder, "--budget", budget, "--model", model(), *BY_KEYS, *flags, code=code)


def events(done: subprocess.CompletedProcess, kind: str) -> list[dict]:
    return [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == kind]


def names(events: list[dict]) -> list[str]:
    return [Path(event["file"]).name for event in events]


def is_whole(path: Path, saved: tuple[Path, int]) -> bool:
    return path.stat().st_size == saved[0].stat().st_size


@pytest.mark.sample
def test_the_oldest_slots_are_compacted_until_the_folder_is_within_its_budget(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 5)
    slots[3].chmod(0o640)
    size = saved[0].stat().st_size

    first = watch(tmp_path, 3 * size, "--once", "--json")
    again = watch(tmp_path, 3 * size, "--once", "--json")

    assert names(events(first, "compacted")) == ["slot00.bin", "slot01.bin", "slot02.bin"]
    assert [is_whole(path, saved) for path in slots] == [False, False, False, True, True]
    last = events(first, "folder")[-1]
    assert last["bytes"] == sum(path.stat().st_size for path in slots) <= 3 * size
    assert (last["slots"], last["compacted"], last["left"], last["fresh"]) == (5, 3, 0, 0)
    assert [int(path.stat().st_mtime) for path in slots] == [OLD + number for number in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in slots]
    assert names(events(again, "compacted")) == []
    all_of_them = watch(tmp_path, 1, "--once", "--json", code=1)  # Nothing is removed, however small the budget.
    assert names(events(all_of_them, "compacted")) == ["slot03.bin", "slot04.bin"]
    assert slots[3].stat().st_mode & 0o777 == 0o640


def test_of_slots_of_one_age_the_larger_goes_first(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 2)
    with Server(tmp_path) as server:
        server.complete(PROMPT[:400], 0)
        server.slot("save", "a-small.bin")
    for path in (*slots, tmp_path / "a-small.bin"):
        os.utime(path, (OLD, OLD))
    budget = sum(path.stat().st_size for path in tmp_path.iterdir()) - 1

    done = watch(tmp_path, budget, "--once", "--json")

    assert names(events(done, "compacted")) == ["slot00.bin"]


def test_a_server_restores_what_was_replaced(saved, tmp_path):
    folder_of(saved, tmp_path, 1)
    watch(tmp_path, 1, "--once", code=1)

    with Server(tmp_path) as server:
        assert server.slot("restore", "slot00.bin")["n_restored"] == saved[1]
        timings = server.complete(PROMPT + " And so")["timings"]

    assert timings["cache_n"] == saved[1] and timings["prompt_n"] <= 3


@pytest.mark.sample
def test_what_is_being_written_or_is_no_slot_stays_as_it_is(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 2)
    os.utime(slots[1])
    cut, text = tmp_path / "cut.bin", tmp_path / "notes.txt"
    cut.write_bytes(saved[0].read_bytes()[:100_000])
    text.write_text("not a slot\n" * 1000)
    for path in (cut, text):
        os.utime(path, (OLD, OLD))
    (tmp_path / "link.bin").symlink_to(slots[0])

    done = watch(tmp_path, 1, "--once", "--json", code=1)

    assert names(events(done, "compacted")) == ["slot00.bin"]
    assert names(events(done, "left")) == ["cut.bin"]
    assert events(done, "folder")[-1]["fresh"] == 1
    assert is_whole(slots[1], saved) and cut.stat().st_size == 100_000 and text.stat().st_size == 11_000
    assert (tmp_path / "link.bin").is_symlink()


def test_a_dry_run_says_what_would_come_of_it_and_changes_nothing(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 3)
    size = saved[0].stat().st_size

    done = watch(tmp_path, 2 * size, "--dry-run", "--json")

    would = events(done, "compacted")
    assert names(would) == ["slot00.bin", "slot01.bin"] and all(event["dry_run"] for event in would)
    assert all(is_whole(path, saved) for path in slots) and len(list(tmp_path.iterdir())) == 3
    spoken = watch(tmp_path, 2 * size, "--dry-run")
    assert "nothing was written" in spoken.stdout and "3 slot files" in spoken.stdout


def start(folder: Path, budget: int) -> subprocess.Popen:
    words = ("llama", "watch-slots", folder, "--budget", budget, "--model", model(), *BY_KEYS, "--json")
    return subprocess.Popen([str(word) for word in (program("dkv"), *words)], stdout=subprocess.PIPE, text=True)


@pytest.mark.sample
def test_twenty_slots_killed_half_way_go_on_with_the_rest(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 20)
    process = start(tmp_path, 1)
    for _ in range(7):
        process.stdout.readline()
    process.kill()
    process.communicate()
    done_before = {path: path.stat().st_ino for path in slots if not is_whole(path, saved)}
    assert 7 <= len(done_before) < 20

    rest = watch(tmp_path, 1, "--once", "--json", code=1)

    assert len(events(rest, "compacted")) == 20 - len(done_before) and events(rest, "left") == []
    assert {path: path.stat().st_ino for path in done_before} == done_before
    assert len({path.read_bytes() for path in slots}) == 1 and not is_whole(slots[0], saved)
    assert sorted(tmp_path.iterdir()) == slots


def test_a_watch_takes_up_what_is_saved_later_and_ends_on_sigterm(saved, tmp_path):
    slots = folder_of(saved, tmp_path, 1)
    process = start(tmp_path, 1)
    assert json.loads(process.stdout.readline())["event"] == "compacted"
    ended = threading.Timer(120, process.kill)
    ended.start()
    later = tmp_path / "later.bin"
    shutil.copy(saved[0], later)
    os.utime(later, (OLD, OLD))
    while is_whole(later, saved):
        assert process.poll() is None
        time.sleep(0.1)
    refused = watch(tmp_path, 1, "--once", code=1)

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    ended.cancel()

    assert process.returncode == 0 and not is_whole(slots[0], saved)
    assert "another dkv llama watch-slots has this folder" in refused.stderr


def test_a_watch_asks_for_the_model_and_for_a_folder(tmp_path):
    for words, message in (
        ((tmp_path, "--budget", "1GiB"), "say which it is (--model FILE.gguf), or --kv-heads"),
        ((tmp_path / "none", "--budget", "1GiB", "--kv-heads", 3), "no folder that can be read"),
        ((tmp_path, "--kv-heads", 3), "--budget is required"),
        ((tmp_path, "--budget", "1GiB", "--kv-heads", 3, "--capacity", 128), "one size is enough"),
    ):
        refused = dkv("llama", "watch-slots", *words, *BY_KEYS, code=None)
        assert refused.returncode != 0 and message in refused.stderr, refused.stderr
