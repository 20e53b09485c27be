"""The engine in C as tests start it."""

from __future__ import annotations

import json
import os
import subprocess

from processes import program

LAYERS, KV_HEADS, TOKENS, CAPACITY = 6, 2, 600, 128
SANITIZED = os.environ.get("DKV_SANITIZED") == "1"
DEVICE = os.environ.get("DKV_TEST_DEVICE")  # None: the CPU; "cuda": the first GPU.
ARENAS = ["malloc", "vmm"] if DEVICE else ["memfd", "posix_shm"]
GEOMETRY = ["--layers", str(LAYERS), "--q-heads", "6", "--kv-heads", str(KV_HEADS), "--head-dim", "64"]


class CEngine:
    def __init__(self, sidecar, *flags: str, tokens: int = TOKENS, device: str | None = DEVICE, **environment: str):
        place = ["--device", device] if device else []
        self.process = subprocess.Popen(
            [program("dkv_c_engine"), "--endpoint", sidecar.endpoint, *GEOMETRY, "--tokens", str(tokens), *place, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def line(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, list[dict]]:
        out, err = self.process.communicate(timeout=60)
        assert not err
        return self.process.returncode, [json.loads(line) for line in out.splitlines()]


def run(sidecar, *flags: str, **how) -> tuple[int, dict]:
    code, lines = CEngine(sidecar, *flags, **how).end()
    return code, lines[-1]


def status(sidecar) -> dict:
    return json.loads(sidecar.dkv("--json", "status").stdout)["sidecar"]
