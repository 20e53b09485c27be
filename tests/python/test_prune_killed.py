"""`dkv prune` that is killed again and again: no cache is lost, and the next run goes on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time

import pytest
import torch
from processes import program
from safetensors.torch import save_file

pytestmark = pytest.mark.e2e

CACHES, TOKENS, LAYERS = 24, 2048, 4


@pytest.fixture
def store(tmp_path):
    torch.manual_seed(1)
    for index in range(CACHES):
        rows = {f"layers.{layer}.{part}": torch.randn(2, TOKENS, 32) for layer in range(LAYERS) for part in ("keys", "values")}
        path = tmp_path / f"c{index:02}.safetensors"
        save_file(rows, path, {"format": "dkv", "version": "1", "model": "a small one", "n_prompt": str(TOKENS)})
        os.utime(path, (1_700_000_000 + index,) * 2)
    return tmp_path


def dkv(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True)


def test_a_prune_that_is_killed_loses_nothing_and_the_next_goes_on(store):
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = sum(path.stat().st_size for path in store.iterdir())
    prune = ["prune", store, "--budget", size * 11 // 20, "--policy", "knorm", "--unmeasured", "--settle-s", 0]

    whole = size // CACHES

    def compacted() -> int:
        return sum(path.stat().st_size < whole for path in store.glob("*.safetensors"))

    killed_at = []
    for _ in range(8):
        running = subprocess.Popen([program("dkv"), *map(str, prune)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = compacted()
        while running.poll() is None and compacted() == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        running.kill()
        running.wait()
        killed_at.append(compacted())
        caches = json.loads(dkv("ls", "--json", store).stdout)["caches"]
        assert [cache["tokens"] for cache in caches] == [TOKENS] * CACHES  # Each whole or compacted, none broken.

    done = dkv(*prune)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(0 < count < compacted() for count in killed_at), killed_at  # Not all before the work or after it.
    assert dkv("verify", store).returncode == 0
    assert [path.name for path in sorted(store.iterdir()) if path.name.startswith(".")] == [".dkv-verified.jsonl"]
    assert sum(path.stat().st_size for path in store.glob("*.safetensors")) <= size * 11 // 20
