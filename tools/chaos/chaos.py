#!/usr/bin/env python3
"""Strikes real processes with faults at every state of a session, and looks whether dkv's promises hold.

    tools/chaos/chaos.py --bin build/release/bin [--faults 2000] [--hf 40] [--vllm 40] [--seed 1]
                         [--write docs/RELIABILITY.md]
    tools/chaos/chaos.py --bin build/release/bin --seed 17 --only 'kill dkvd@prefill'      # one fault again

A case: an engine's prompt is stopped at a state by a proxy on its connection, the fault strikes, the prompt goes on.
Promised: each row that the engine decodes against is the row of that prompt (SmolLM2: the text is right for these rows),
the fault undone the same engine's next prompt is compressed, prompts of other engines are, and in the end dkvd has no
mapping, descriptor, thread or memory more than before, /dev/shm is empty, and `dkv status` says so. A broken promise
is printed with the flags that play it again, and the exit code is 1. Needs root for its own /dev/shm of 256 MiB; without,
"full /dev/shm" and full disks are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import disk
import table
from actors import (
    MODELS, PATIENCE_S, VLLM_PYTHON, Broken, Engine, Sidecar, Watcher, c_engine, crowd, lent_mappings, model_engine, waited_for,
)  # fmt: skip
from faults import DEADLINE_MS, FAULTS, HEARTBEAT_MS, Fault, Scene
from line import Stop
from states import BEFORE, points

POLICIES = ("dynamickv", "snapkv", "pyramidkv", "streamingllm", "auto")
RSS_GROWTH_MAX = 64 << 20
TRIES = 3  # A busy machine lets prompts of short deadlines miss their state.
MISSED_S = 5
BROKEN_MAX = 10  # Then it gives up.
AGAIN_S = 60  # In which the next prompt is compressed: an engine asks a silent sidecar after 1, 2, 4 … s.
WISHES = {
    "hf": (
        {"policy": "snapkv", "capacity": 64},
        {"policy": "dynamickv", "capacity": 64},
        {"policy": "pyramidkv", "capacity": 64},
        {"policy": "dynamickv", "capacity": 96, "progressive": False},
    ),
    "vllm": (
        {"name": "snapkv", "capacity": 64},
        {"name": "dynamickv", "capacity": 64},
        {"name": "dynamickv", "capacity": 64, "granularity": "layer-head"},
        {"name": "pyramidkv", "capacity": 96},
    ),
}
MODEL_FAULTS = {"kill dkvd", "end dkvd", "stop dkvd", "interrupt dkvd", "kill engine", "repeat a message", "delay a message"}
MODEL_STATES = {"open", "prefill", "planned", "committed", "adopted", "closed"}


def c_flags(rng: random.Random, fault: Fault, state: str = "") -> list[str]:
    """With a state: of the engine that is struck. Others have time, unless dkvd itself is struck."""
    kv_heads, window = rng.choice((1, 2, 3)), rng.choice((8, 32))
    wish = {
        "layers": rng.randint(3, 8),
        "q-heads": kv_heads * rng.choice((1, 3)),
        "kv-heads": kv_heads,
        "head-dim": rng.choice((64, 128)),
        "dtype": rng.choice(("f32", "f16", "bf16")),
        "tokens": rng.choice((200, 600, 1000)),
        "capacity": window + rng.choice((16, 64)),
        "window": window,
        "policy": rng.choice(POLICIES),
        "arena": "posix_shm" if fault.needs_named_memory else rng.choice(("memfd", "posix_shm") if own_shm() else ("memfd",)),
        "seed": rng.randint(1, 1 << 30),
        "timeout-ms": fault.deadline_ms if state or fault.hits_dkvd else DEADLINE_MS,
    }
    flags = [word for key, value in wish.items() for word in (f"--{key}", str(value))]
    return flags + list(points()[state].flags if state else ()) + (["--no-progressive"] if rng.random() < 0.3 else [])


class Missed(Broken):
    """The prompt ended before it came to the state: no fault has struck."""


class Case:
    def __init__(self, sidecar: Sidecar, fault: Fault, state: str, seed: int, model: "ModelEngine | None" = None):
        self.sidecar, self.fault, self.state, self.model = sidecar, fault, state, model
        self.rng = random.Random(f"{seed}/{fault.name}@{state}")
        self.others: list[Engine] = []
        self.crowd: Engine | None = None
        self.engine: Engine | None = None
        self.ended: int | None = None
        self.scene: Scene | None = None
        self.watcher: Watcher | None = None
        self.told: dict | None = None  # By the struck engine.
        self.lock, self.over = threading.Lock(), False  # Over: a strike would hit the next case.

    def play(self) -> str:
        """What became of the prompt that was struck."""
        if self.fault.watched:
            self.watcher = Watcher(self.sidecar)
        place = points()[self.state]
        skip = self.rng.randrange(2) if self.state == "prefill" else 0
        stop = Stop(place, self.strike, skip)
        flags = c_flags(self.rng, self.fault, self.state)
        for _ in range(self.rng.choice((0, 0, 1, 2)) if self.model is None else 0):
            self.others.append(c_engine(self.sidecar, c_flags(self.rng, self.fault)))
        crowd_flags = c_flags(self.rng, self.fault) if self.rng.random() < 0.3 and self.model is None else None
        named = {"DKV_ARENA": "posix_shm"} if "posix_shm" in flags else {}
        wish = self.rng.choice(WISHES[self.model.kind]) if self.model else None
        if self.model is not None:
            self.engine = self.model.take(self.sidecar, stop)
        else:
            self.engine = c_engine(self.sidecar, flags, stop, **named)
        if crowd_flags:
            self.crowd = crowd(self.sidecar, crowd_flags)
        for one in [*self.others, self.engine]:
            one.begin(wish)
        outcome = self.engine.session()
        if not stop.done.wait(MISSED_S):
            with self.lock:
                self.over = self.scene is None
            if not self.over and not stop.done.wait(PATIENCE_S):
                raise Broken(f"{self.fault.name} has not struck within {PATIENCE_S} s")
        for undo in self.scene.undo if self.scene else ():
            undo()
        if stop.error:
            raise stop.error
        if self.scene is None:
            raise Missed(f"{self.state} was not reached: {outcome} {self.engine.said()}")
        self.told = outcome
        result = self.judge(outcome)
        for other in self.others:
            self.judge_other(other, other.session())
        self.restore_dkvd()
        while self.crowd and (outcome := self.crowd.line()):
            self.judge_other(self.crowd, outcome)
        self.next_prompt(wish)
        self.clean_up()
        return result

    def strike(self, line, message) -> str | None:
        waited_for(lambda: self.engine, "the engine's process")
        seen = points()[self.state].seen
        if seen:
            try:
                waited_for(lambda: seen in self.sidecar.states(self.engine.pid), f"dkvd to show a session that is {seen}", 5)
            except Broken as late:
                raise Missed(str(late)) from None
        with self.lock:
            if self.over:
                return None
            self.scene = Scene(self.sidecar, self.engine, self.watcher, self.state, self.rng)
        return self.fault.strike(self.scene, line, message)

    def judge(self, outcome: dict | None) -> str:
        if outcome is None or self.fault.ends_engine is not None:
            self.ended = self.engine.process.wait(10)
            if self.ended != self.fault.ends_engine and not (self.ended == 1 and self.fault.may_lack):
                raise Broken(f"the engine ended with {self.ended}: {self.engine.said()}")
        if outcome is None:
            return "engine ended"
        if outcome["rows_wrong"]:
            raise Broken(f"{outcome['rows_wrong']} wrong rows: {outcome}")
        if outcome["committed"]:
            return "compressed"
        if self.fault.promises_compression(self.state):
            raise Broken(f"not compressed: {outcome['status']}: {outcome['error']}")
        if not outcome["error"]:
            raise Broken(f"not compressed, and no reason given: {outcome}")
        return "whole" if set(outcome["forms"]) == {"full"} else "partly"

    def judge_other(self, other: Engine, outcome: dict | None) -> None:
        if outcome is None or outcome["rows_wrong"] or not (outcome["committed"] or self.fault.hits_dkvd):
            raise Broken(f"another engine's prompt was harmed: {outcome} {other.said()}")

    def restore_dkvd(self) -> None:
        if self.fault.ends_dkvd is not None:
            code = self.sidecar.ended()
            if code != self.fault.ends_dkvd:
                raise Broken(f"dkvd ended with {code}, not {self.fault.ends_dkvd}")
            self.sidecar.start()
        elif not self.sidecar.alive():
            raise Broken(f"dkvd ended with {self.sidecar.process.returncode}")

    def next_prompt(self, wish: dict | None) -> None:
        """Of every engine that is alive, and of a new one where the struck one is not."""
        fresh = [] if self.engine.alive() else [c_engine(self.sidecar, c_flags(self.rng, self.fault))]
        self.others += fresh
        for engine in [self.engine, *self.others]:
            if not engine.alive():
                continue
            until = time.monotonic() + AGAIN_S
            while True:
                engine.begin(wish if engine is self.engine else None)
                outcome = engine.session()
                if outcome is None or outcome["rows_wrong"]:
                    raise Broken(f"the next prompt: {outcome} {engine.said()}")
                if outcome["committed"]:
                    break
                if time.monotonic() > until:
                    raise Broken(f"no later prompt was compressed within {AGAIN_S} s: {outcome}")
                time.sleep(0.1)
            waited_for(lambda engine=engine: lent_mappings(engine.pid) <= engine.keeps, "the engine to unmap its arenas")
        alive = sorted(one.pid for one in [self.engine, *self.others] if one.alive())
        waited_for(lambda: sorted(self.sidecar.attached()) == alive, f"dkv instances to list the engines {alive}")

    def abort(self) -> None:
        """After a broken promise: nothing of it may disturb the next case."""
        for undo in self.scene.undo if self.scene else ():
            with contextlib.suppress(OSError):
                undo()
        for one in [*self.others, self.crowd, self.engine, self.watcher, self.sidecar]:
            if one is not None and one.alive():
                one.process.kill()
                one.process.wait()
        self.sidecar.start()

    def clean_up(self) -> None:
        if self.watcher is not None and (code := self.watcher.end()) != self.fault.ends_watcher:
            raise Broken(f"dkv watch ended with {code}")
        keep = self.model is not None and self.engine.alive()
        ended = [*self.others, *([self.crowd] if self.crowd else []), *([] if keep else [self.engine])]
        for engine in ended:
            code = engine.end()
            if code not in (0, 3) and not (engine is self.engine and code == self.ended):
                raise Broken(f"an engine ended with {code}: {engine.said()}")
        quiet(self.sidecar, 1 if keep else 0)


def warm_up(sidecar: Sidecar) -> None:
    """What a dkvd at rest has: all that come later are compared with it."""
    engine = c_engine(sidecar, ["--capacity", "64", "--tokens", "1000"])
    engine.begin()
    if not engine.session()["committed"]:
        raise SystemExit("chaos: dkvd does not compress a first prompt")
    engine.end()
    quiet(sidecar, 0)


def quiet(sidecar: Sidecar, engines: int) -> None:
    """Nothing of the engines that ended is left, here or in what dkvd says."""

    def is_quiet() -> bool:
        status = sidecar.status()
        return bool(status) and (
            (status["instances_attached"], status["sessions_open"], status["pid"])
            == (engines, 0, sidecar.process.pid)
        ) and (engines > 0 or status["mapped_bytes"] == 0)

    waited_for(is_quiet, "dkv status to show no engine, session or mapping")
    if engines:
        return
    if lent_mappings(sidecar.process.pid):
        raise Broken("dkvd has mappings of engines that ended")
    if sidecar.first is None:
        sidecar.first = sidecar.measure()
    rss, files, threads = sidecar.first
    waited_for(
        lambda: sidecar.measure()[1] <= files and sidecar.measure()[2] <= threads,
        f"dkvd to have {files} descriptors and {threads} threads again; it has {sidecar.measure()[1:]}", 5,
    )  # fmt: skip
    grown = sidecar.measure()[0] - rss
    sidecar.rss_max = max(sidecar.rss_max, grown)
    if grown > RSS_GROWTH_MAX:
        raise Broken(f"dkvd grew by {grown} bytes")
    if left_in_shm():
        # The name of an arena that no sidecar has mapped yet outlives a killed engine; the next dkvd removes it.
        sidecar.stop()
        sidecar.start()
        if left_in_shm():
            raise Broken(f"left in /dev/shm: {left_in_shm()}")


def left_in_shm() -> list[str]:
    """Arenas of this run's engines: dkv-PID-…"""
    return [name for name in os.listdir("/dev/shm") if name.startswith("dkv-") and int(name.split("-")[1]) in Engine.pids]


class ModelEngine:
    """Takes seconds to load, and so serves many cases."""

    def __init__(self, kind: str):
        self.kind = kind
        self.engine: Engine | None = None

    def take(self, sidecar: Sidecar, stop: Stop) -> Engine:
        if self.engine is None or not self.engine.alive():
            self.engine = model_engine(self.kind, sidecar, stop)
            self.engine.keeps = lent_mappings(self.engine.pid)
        self.engine.proxy.stop_at = stop
        return self.engine

    def end(self) -> None:
        if self.engine is not None and self.engine.alive():
            self.engine.process.kill()
            self.engine.end()


def strike(sidecar: Sidecar, fault: Fault, state: str, seed: int, model: ModelEngine | None, told: bool) -> str:
    """What came of it, or "broken", which it prints."""
    for tried in range(1, TRIES + 1):
        case = Case(sidecar, fault, state, seed, model)
        try:
            outcome = case.play()
            if told:
                print(f"chaos: {case.told}")
            return outcome
        except (Broken, OSError, subprocess.SubprocessError) as broken:
            words = sidecar.last_words()
            case.abort()
            if not isinstance(broken, Missed) or tried == TRIES:
                again = f"--seed {seed}{f' --{model.kind} 1' if model else ''} --only '{fault.name}@{state}'"
                print(f"chaos: BROKEN ({again}): {broken}\n{words}", flush=True)
                break
    return "broken"


def plan(faults: int, models: dict[str, int], seed: int, private: bool, only: str | None) -> list[tuple[Fault, str, int, str]]:
    """Every fault at every state, again and again, each round with a seed of its own."""
    usable = [fault for fault in FAULTS if private or not fault.needs_named_memory]
    if only:
        name, _, state = only.partition("@")
        fault = next((fault for fault in FAULTS if fault.name == name), None)
        if fault is None or state not in points():
            raise SystemExit(f"chaos: no fault '{only}': FAULT@STATE, of {[f.name for f in FAULTS]} and {list(points())}")
        if fault not in usable:
            raise SystemExit(f"chaos: '{name}' needs root, for a /dev/shm of its own")
        return [(fault, state, seed, next((kind for kind, count in models.items() if count), "c"))]
    cases, rng = [], random.Random(seed)
    for kind, count in (("c", faults - sum(models.values())), *models.items()):
        round_seed, made = seed, []
        while len(made) < count:
            every = [
                (fault, state, round_seed, kind) for fault in usable for state in points()
                if kind == "c" or (fault.name in MODEL_FAULTS and state in MODEL_STATES)
            ]  # fmt: skip
            rng.shuffle(every)
            made += every[: count - len(made)]
            round_seed += 1
        cases += made
    return cases


def own_shm() -> bool:
    """Whether /dev/shm is this run's alone."""
    return os.environ.get("DKV_CHAOS_PRIVATE") == str(os.getpid())


def own_namespace() -> bool:
    """A /dev/shm of its own, which may be filled. The program starts itself again in it."""
    if own_shm():
        return True
    inside = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=256m tmpfs /dev/shm && exec "$@"', "-"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], stderr=subprocess.DEVNULL).returncode != 0:
        return False
    os.execvpe(inside[0], [*inside, sys.executable, *sys.argv], {**os.environ, "DKV_CHAOS_PRIVATE": str(os.getpid())})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--faults", type=int, default=2000, help="how many")
    parser.add_argument("--hf", type=int, default=0, help="how many of them with SmolLM2 in transformers")
    parser.add_argument("--vllm", type=int, default=0, help="how many of them with SmolLM2 in vLLM (.venv-vllm)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", metavar="FAULT@STATE", help="one case, with the seed that was printed")
    parser.add_argument("--write", type=pathlib.Path, metavar="PAGE", help="put the table into this page")
    options = parser.parse_args()
    models = {kind: getattr(options, kind) for kind in MODELS}
    if sum(models.values()) > options.faults:
        parser.error(f"--hf and --vllm are {sum(models.values())} faults, --faults {options.faults}: expected no more than those")
    if options.vllm and not VLLM_PYTHON.exists():
        parser.error(f"--vllm needs {VLLM_PYTHON}: run tools/vllm/install.sh")
    private = own_namespace()
    binaries = options.bin.resolve()
    os.environ.setdefault("DKV_LIBRARY", str(binaries.parent / "lib/libdkv.so"))
    cases = plan(options.faults, models, options.seed, private, options.only)
    left_out = "" if private else "; no mount namespace of its own (root?): no full /dev/shm, no full disk"
    print(f"chaos: seed {options.seed}, {len(cases)} faults{left_out}", flush=True)
    results, began = table.Results(options.seed), time.monotonic()
    engines = {kind: ModelEngine(kind) for kind in MODELS}
    with tempfile.TemporaryDirectory(prefix="dkv-chaos-") as folder:
        os.chmod(folder, 0o700)
        preload = binaries.parent / "lib/libdkv_chaos_through.so"
        sidecar = Sidecar(pathlib.Path(folder), binaries, "--heartbeat-ms", str(HEARTBEAT_MS), preload=preload)
        try:
            warm_up(sidecar)
            for number, (fault, state, seed, kind) in enumerate(cases, 1):
                for engine in engines.values():
                    if engine.kind != kind:
                        engine.end()
                outcome = strike(sidecar, fault, state, seed, engines.get(kind), bool(options.only))
                results.add(fault.name, state, kind, outcome)
                if results.broken() >= BROKEN_MAX:
                    break
                if number % 100 == 0:
                    print(f"chaos: {number} faults, {time.monotonic() - began:.0f} s", flush=True)
            if private and not options.only:
                results.disk = disk.play(binaries, pathlib.Path(folder), options.seed, max(2, options.faults // 100))
        except Broken as broken:
            print(f"chaos: BROKEN (--seed {options.seed}): {broken}", flush=True)
            return 1
        finally:
            for engine in engines.values():
                engine.end()
            if sidecar.alive():
                sidecar.process.kill()
                sidecar.process.wait()
    text = results.text(time.monotonic() - began, sidecar.rss_max)
    print(text)
    if options.write:
        table.put(options.write, "tools/chaos/chaos.py", text)
    return 1 if results.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
