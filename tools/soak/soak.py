#!/usr/bin/env python3
"""Many engines, many sessions, and processes that are killed. Ends with 1 at the first broken promise.

    tools/soak/soak.py --bin build/release/bin --minutes 10 [--seed 1]

Each round starts one to four C engines with random geometry, policy and arena kind against one dkvd, and
in every second round kills dkvd or an engine at a random moment. Promised: every packed row is the row
it was, budgets are exact, a refused or abandoned session leaves the cache readable, dkvd lets go of every
engine that ended, and its memory and descriptors do not grow. What is left in /dev/shm is reported: the name
of a POSIX object whose engine was killed before the sidecar had mapped it (a memfd has none).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

POLICIES = ("fullkv", "streamingllm", "snapkv", "pyramidkv", "dynamickv")
ENGINE_S = 120
GROWTH_BYTES_MAX = 64 << 20
FDS_GROWTH_MAX = 16


class Broken(Exception):
    """A promise that was not kept."""


class Daemon:
    def __init__(self, folder: pathlib.Path, bin_folder: pathlib.Path):
        self.endpoint, self.bin = f"ipc://{folder}/dkvd.sock", bin_folder
        self.log = open(folder / "dkvd.log", "ab")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.bin / "dkvd", "--endpoint", self.endpoint, "--log-level", "warn"], stderr=self.log
        )
        deadline = time.monotonic() + 20
        while self.status() is None:
            if time.monotonic() > deadline:
                raise Broken("dkvd does not start")
        self.first = None

    def status(self) -> dict | None:
        done = subprocess.run(
            [self.bin / "dkv", "--endpoint", self.endpoint, "--json", "status"], capture_output=True
        )
        return json.loads(done.stdout)["sidecar"] if done.returncode == 0 else None

    def check_growth(self) -> None:
        """Compared with the first quiet moment of this process, after its warm-up."""
        rss = 4096 * int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        now = (rss, len(os.listdir(f"/proc/{self.process.pid}/fd")))
        self.first = self.first or now
        if now[0] - self.first[0] > GROWTH_BYTES_MAX or now[1] - self.first[1] > FDS_GROWTH_MAX:
            raise Broken(f"dkvd grew from {self.first} to {now} (RSS bytes, descriptors)")


def engine_flags(rng: random.Random) -> tuple[list[str], dict]:
    kv_heads, window = rng.choice((1, 2, 3)), rng.choice((8, 32))
    wish = {
        "layers": rng.randint(1, 12),
        "q-heads": kv_heads * rng.choice((1, 3, 4)),
        "kv-heads": kv_heads,
        "head-dim": rng.choice((64, 80, 128)),
        "dtype": rng.choice(("f32", "f16", "bf16")),
        "tokens": rng.choice((1, 20, 200, 1000, 3000)),
        "capacity": window + rng.choice((0, 1, 64, 500)),
        "window": window,
        "policy": rng.choice(POLICIES),
        "sessions": rng.randint(1, 6),
        "arena": rng.choice(("memfd", "posix_shm")),
        "seed": rng.randint(1, 1 << 30),
    }
    flags = [word for key, value in wish.items() for word in (f"--{key}", str(value))]
    return flags + (["--no-progressive"] if rng.random() < 0.3 else []), wish


def check_outcome(line: str, wish: dict, disturbed: bool) -> bool:
    """True when the session was compressed."""
    outcome = json.loads(line)
    if outcome["rows_wrong"]:
        raise Broken(f"{outcome['rows_wrong']} wrong rows with {wish}: {line}")
    if outcome["status"] != "ok" and not disturbed:
        raise Broken(f"{outcome['status']}: {outcome['error']} with {wish}")
    if outcome["committed"]:
        kept = sum(map(sum, outcome["lengths"]))
        if kept != wish["layers"] * wish["kv-heads"] * wish["capacity"]:
            raise Broken(f"kept {kept} rows with {wish}")
    return bool(outcome["committed"])


def play_round(daemon: Daemon, rng: random.Random, disturb: bool, counts: dict) -> None:
    engines = []
    for _ in range(rng.randint(1, 4)):
        flags, wish = engine_flags(rng)
        command = [daemon.bin / "dkv_c_engine", "--endpoint", daemon.endpoint, *flags]
        engines.append((subprocess.Popen(command, stdout=subprocess.PIPE, text=True), wish))
    killed, sidecar_killed = None, False
    if disturb:
        time.sleep(rng.random() * 0.3)
        killed = rng.choice([daemon.process, *(process for process, _ in engines)])
        killed.kill()
        sidecar_killed = killed is daemon.process
        if sidecar_killed:
            killed.wait()
            daemon.start()
        counts["kills"] += 1
    for process, wish in engines:
        out, _ = process.communicate(timeout=ENGINE_S)
        for line in out.splitlines() if process is not killed else ():
            counts["sessions"] += 1
            counts["compressed"] += check_outcome(line, wish, sidecar_killed)


def settle(daemon: Daemon) -> None:
    """After a round nothing may be attached or mapped."""
    deadline = time.monotonic() + 20
    while (status := daemon.status()) and (status["instances_attached"] or status["mapped_bytes"]):
        if time.monotonic() > deadline:
            raise Broken(f"still attached after every engine ended: {status}")
    daemon.check_growth()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    rng, counts, rounds = random.Random(options.seed), {"sessions": 0, "compressed": 0, "kills": 0}, 0
    print(f"soak: seed {options.seed}, {options.minutes} minutes")
    with tempfile.TemporaryDirectory(prefix="dkv-soak-") as folder:
        daemon = Daemon(pathlib.Path(folder), options.bin)
        end = time.monotonic() + 60 * options.minutes
        try:
            while time.monotonic() < end:
                play_round(daemon, rng, rounds % 2 == 1, counts)
                settle(daemon)
                rounds += 1
        except Broken as broken:
            print(f"soak: broken in round {rounds}: {broken}", file=sys.stderr)
            print(f"soak: dkvd's exit code: {daemon.process.poll()}; its last words:", file=sys.stderr)
            print(pathlib.Path(folder, "dkvd.log").read_text()[-1500:], file=sys.stderr)
            return 1
        finally:
            daemon.process.terminate()
            daemon.process.wait(20)
    left = [name for name in os.listdir("/dev/shm") if name.startswith("dkv-")]
    print(f"soak: {rounds} rounds, {counts}, left in /dev/shm: {left or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
