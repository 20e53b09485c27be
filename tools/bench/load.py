#!/usr/bin/env python3
"""One dkvd under many engines: latency, fairness, memory, and what it says when there are too many.

    tools/bench/load.py --bin build/release/bin [--engines 64] [--at-once 8] [--minutes 1] [--write docs/RELIABILITY.md]

Engines are processes of tests/e2e/c_engine, each with --at-once prompts at the same time, of 512 tokens, 4 layers, 2 KV
heads of 64 dims, bf16, compressed to 128 tokens by dynamickv; every row is checked. Round after round until --minutes have
passed; after each round dkvd must be as small as before it. Ends with 1 where a row is wrong, a prompt of a round is not
compressed, an overload is refused with anything but limit_exceeded, or descriptors, threads or mappings stay.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos"))

from actors import Broken, Sidecar, waited_for  # noqa: E402
from table import machine, put  # noqa: E402

SHAPE = ["--layers", "4", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--dtype", "bf16", "--tokens", "512"]
WISH = ["--policy", "dynamickv", "--capacity", "128", "--window", "16", "--timeout-ms", "120000"]
TINY = ["--layers", "32", "--q-heads", "1", "--kv-heads", "1", "--head-dim", "64", "--dtype", "bf16", "--tokens", "64"]
TINY_WISH = ["--policy", "snapkv", "--capacity", "32", "--window", "8", "--settle"]
LATER = slice(1, None)  # Layers; the first report waits until the sidecar has mapped the prompt's arena.
SESSIONS_A_ROUND = 6  # Of each thread.
SESSIONS_MAX = 1024  # sidecar/config/config.h
GROWTH_MAX = 64 << 20


class Engine:
    started: list["Engine"] = []

    def __init__(self, sidecar: Sidecar, *flags: str):
        self.begin = time.monotonic()
        command = [sidecar.bin / "dkv_c_engine", "--endpoint", sidecar.endpoint, *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        Engine.started.append(self)
        self.lines, self.seconds = [], 0.0
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
        self.process.wait()
        self.seconds = time.monotonic() - self.begin

    def paused(self) -> int:
        return sum("paused_at_layer" in line for line in self.lines)

    def outcomes(self) -> list[dict]:
        self.reader.join()
        return [line for line in self.lines if "status" in line]


def row(said: str, outcomes: list[dict], name: str, layers: slice = slice(None)) -> str:
    values = sorted(ns / 1000 for outcome in outcomes for ns in outcome[name][layers])
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    return f"| {said} | {at(0.5):,.0f} | {at(0.9):,.0f} | {at(0.99):,.0f} | {len(values):,} |"


def check(outcomes: list[dict], count: int) -> None:
    bad = [one for one in outcomes if one["rows_wrong"] or not one["committed"]]
    if bad or len(outcomes) != count:
        raise Broken(f"{len(outcomes)} of {count} prompts, {len(bad)} wrong or not compressed: {bad[:1]}")


def message_path(sidecar: Sidecar) -> list[str]:
    """One engine alone, whose layers are hardly any work."""
    outcomes = Engine(sidecar, *TINY, *TINY_WISH, "--sessions", "60").outcomes()
    check(outcomes, 60)
    return [
        row("one engine: a layer's report, the engine's own time", outcomes, "report_ns", LATER),
        row("one engine: from a layer's report to its release, 64 tokens", outcomes, "settle_ns", LATER),
    ]


def sample(sidecar: Sidecar, over: threading.Event, into: list) -> None:
    into.append(sidecar.measure())  # A round may be over before the first half second.
    while not over.wait(0.5):
        into.append(sidecar.measure())


def quiet(sidecar: Sidecar, before: tuple | None = None) -> tuple[int, int, int]:
    """Once it has no more descriptors and threads than before: a worker's thread ends after its engine is gone."""

    def is_quiet() -> bool:
        status = sidecar.status()
        return bool(status) and (status["instances_attached"], status["mapped_bytes"]) == (0, 0)

    waited_for(is_quiet, "every engine to be gone")
    if before is not None:
        waited_for(
            lambda: sidecar.measure()[1] <= before[1] and sidecar.measure()[2] <= before[2],
            f"dkvd to have {before[1]} descriptors and {before[2]} threads again; it has {sidecar.measure()[1:]}",
        )
    return sidecar.measure()


def check_rest(first: tuple, now: tuple) -> None:
    """RSS bytes against the first round's, after which the allocator has its pages."""
    if now[0] - first[0] > GROWTH_MAX:
        raise Broken(f"dkvd had {first} after the first round, and has {now} (RSS bytes, descriptors, threads)")


def steady(sidecar: Sidecar, engines: int, at_once: int, minutes: float) -> list[str]:
    outcomes, busiest, rests, rates, fairness = [], [], [], [], []
    before = quiet(sidecar)
    over, until = threading.Event(), time.monotonic() + 60 * minutes
    sampler = threading.Thread(target=sample, args=(sidecar, over, busiest))
    sampler.start()
    try:
        while not rests or time.monotonic() < until:
            flags = [*SHAPE, *WISH, "--at-once", str(at_once), "--sessions", str(SESSIONS_A_ROUND)]
            begin = time.monotonic()
            running = [Engine(sidecar, *flags, "--seed", str(1000 * at)) for at in range(engines)]
            made = [one for engine in running for one in engine.outcomes()]
            rates.append(len(made) / (time.monotonic() - begin))
            check(made, engines * at_once * SESSIONS_A_ROUND)
            speeds = [1 / engine.seconds for engine in running]
            fairness.append(sum(speeds) ** 2 / (len(speeds) * sum(speed * speed for speed in speeds)))
            outcomes = (outcomes + made)[-200_000:]
            rests.append(quiet(sidecar, before))
            check_rest(rests[0], rests[-1])
            print(f"load: round {len(rests)}, {rates[-1]:.0f} prompts/s, dkvd at rest {rests[-1]}", flush=True)
    finally:
        over.set()
        sampler.join()
    first, last = rests[0], rests[-1]
    crowd = f"{engines} × {at_once} at once: "
    rows = [
        row(crowd + "opening a prompt", outcomes, "open_ns"),
        row(crowd + "the first layer's report, which registers the arena", outcomes, "report_ns", slice(1)),
        row(crowd + "a later layer's report", outcomes, "report_ns", LATER),
        row(crowd + "waiting for the packed rows at the end", outcomes, "finish_ns"),
    ]
    mib = 2**20
    resting = ", ".join(f"{one[0] / mib:.0f}" for one in rests[:: max(1, len(rests) // 12)])
    return [
        *rows,
        "",
        f"{len(rests)} rounds in {minutes:g} minutes, {engines * at_once * SESSIONS_A_ROUND * len(rests):,} prompts, all "
        f"compressed, every row right; {sum(rates) / len(rates):.0f} prompts a second. Fairness between engines (Jain's "
        f"index of their speeds; 1: all alike): {min(fairness):.3f} at worst.",
        "",
        f"dkvd's resident memory at rest: {resting} MiB, {max(one[0] for one in busiest) / mib:.0f} MiB at most under way "
        f"(the engines' mapped pages are in it). Descriptors at rest: {first[1]}, then {last[1]}; "
        f"{max(one[1] for one in busiest)} at most. Threads at rest: {first[2]}, then {last[2]}.",
    ]


def overload(sidecar: Sidecar, engines: int) -> list[str]:
    """More prompts open at once than dkvd takes: all of them stand still in their first layer."""
    each = SESSIONS_MAX // engines + 4
    flags = ["--layers", "2", "--q-heads", "1", "--kv-heads", "1", "--head-dim", "64", "--tokens", "128", *WISH]
    flags = [*flags, "--capacity", "64", "--at-once", str(each), "--pause-at-layer", "0"]
    before = quiet(sidecar)
    running = [Engine(sidecar, *flags, "--seed", str(1000 * at)) for at in range(engines)]
    waited_for(lambda: all(engine.paused() == each for engine in running), "every prompt to be open or refused", 300)
    opened = sidecar.status()["sessions_open"]
    for engine in running:
        engine.process.stdin.write("\n" * each)
        engine.process.stdin.close()
    counts: collections.Counter = collections.Counter()
    for one in [one for engine in running for one in engine.outcomes()]:
        if one["rows_wrong"]:
            raise Broken(f"wrong rows under overload: {one}")
        counts["ok" if one["committed"] else one["status"]] += 1
    refused = engines * each - SESSIONS_MAX
    if opened != SESSIONS_MAX or counts != {"ok": SESSIONS_MAX, "limit_exceeded": refused}:
        raise Broken(f"{opened} sessions open, {dict(counts)}; expected {SESSIONS_MAX} ok, {refused} limit_exceeded")
    quiet(sidecar, before)
    check(Engine(sidecar, *SHAPE, *WISH).outcomes(), 1)
    return [
        f"{engines * each:,} prompts at once: {counts['ok']:,} compressed, {counts['limit_exceeded']:,} refused with "
        "`limit_exceeded` (retryable) and kept whole, no row wrong; the next prompt after them is compressed."
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=8, help="prompts of each engine")
    parser.add_argument("--minutes", type=float, default=1, help="how long rounds go on")
    parser.add_argument("--write", type=pathlib.Path, metavar="PAGE", help="put the figures into this page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dkv-load-") as folder:
        os.chmod(folder, 0o700)
        sidecar = Sidecar(pathlib.Path(folder), options.bin.resolve())
        try:
            lines = [f"{machine()}, load average {os.getloadavg()[0]:.1f} at the start.", "", "| µs | median | p90 | p99 | n |",
                     "| --- | --- | --- | --- | --- |", *message_path(sidecar)]  # fmt: skip
            lines += steady(sidecar, options.engines, options.at_once, options.minutes)
            lines += ["", *overload(sidecar, options.engines)]
        except (Broken, subprocess.SubprocessError) as broken:
            print(f"load: broken: {broken}", file=sys.stderr)
            print(sidecar.log_path.read_text()[-1500:], file=sys.stderr)
            return 1
        finally:
            for engine in Engine.started:
                if engine.process.poll() is None:
                    engine.process.kill()
            if sidecar.alive():
                sidecar.process.terminate()
                sidecar.process.wait(30)
    print("\n".join(lines))
    if options.write:
        put(options.write, "tools/bench/load.py", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
