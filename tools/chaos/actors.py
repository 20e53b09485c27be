"""The processes that take part: dkvd, engines, a watching controller. All of them are the real programs."""

from __future__ import annotations

import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time

from line import Proxy, Stop

PATIENCE_S = 60
WITH_US = ("setpriv", "--pdeathsig", "KILL")  # A runner that is killed leaves no process, stopped ones included.
HERE = pathlib.Path(__file__).resolve().parent
VLLM_PYTHON = HERE.parents[1] / ".venv-vllm/bin/python"  # Made by tools/vllm/install.sh.
MODELS = {  # Engines with SmolLM2.
    "hf": (sys.executable, HERE / "hf_engine.py"),
    "vllm": (VLLM_PYTHON, HERE / "vllm_engine.py"),
}


class Broken(Exception):
    """A promise that was not kept."""


def waited_for(condition, what: str, seconds: float = PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Broken(f"waited {seconds} s for {what}")
        time.sleep(0.01)
    return found


def lent_mappings(pid: int) -> int:
    """Mappings of arenas, by memfd or by name."""
    text = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return sum("memfd:dkv" in line or "/dev/shm/dkv" in line for line in text.splitlines())


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Sidecar:
    def __init__(self, folder: pathlib.Path, binaries: pathlib.Path, *flags: str, preload: pathlib.Path | str = ""):
        self.socket, self.bin, self.flags, self.preload = f"{folder}/dkvd.sock", binaries, flags, preload
        self.endpoint = f"ipc://{self.socket}"
        self.log_path, self.folder = folder / "dkvd.log", folder
        self.process = None
        self.rss_max, self.first = 0, None  # Of the first dkvd at rest: resident bytes, descriptors, threads.
        self.start()

    def start(self) -> None:
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*WITH_US, self.bin / "dkvd", "--endpoint", self.endpoint, "--log-level", "warn", *self.flags],
                stdout=log, stderr=log, env={**os.environ, "LD_PRELOAD": str(self.preload)},
            )  # fmt: skip
        waited_for(lambda: not self.alive() or self.status(), "dkvd to answer")
        if not self.alive():
            raise Broken(f"dkvd does not start. {self.last_words()}")

    def dkv(self, *words: str) -> dict | None:
        done = subprocess.run(
            [self.bin / "dkv", "--endpoint", self.endpoint, "--timeout-ms", "20000", "--json", *words],
            capture_output=True, timeout=PATIENCE_S,
        )  # fmt: skip
        return json.loads(done.stdout) if done.returncode == 0 else None

    def status(self) -> dict | None:
        answer = self.dkv("status")
        return answer["sidecar"] if answer else None

    def states(self, pid: int) -> list[str]:
        """Of the engine's sessions."""
        ids = [one["instance"] for one in self.listed("instances") if one["pid"] == pid]
        return [one["state"].split()[0] for one in self.listed("sessions") if one["instance"] in ids]

    def listed(self, what: str) -> list[dict]:
        return (self.dkv(what) or {what: []})[what]

    def attached(self) -> list[int]:
        return [one["pid"] for one in self.listed("instances") if one["alive"]]

    def alive(self) -> bool:
        return self.process.poll() is None

    def ended(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Broken("dkvd does not end") from None

    def measure(self) -> tuple[int, int, int]:
        """Resident bytes, descriptors, threads."""
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        rss = os.sysconf("SC_PAGE_SIZE") * int((proc / "statm").read_text().split()[1])
        return rss, descriptors(self.process.pid), len(os.listdir(proc / "task"))

    def last_words(self) -> str:
        return f"dkvd's exit code: {self.process.poll()}; its log: {self.log_path.read_text()[-1500:]}"

    def stop(self) -> None:
        if self.alive():
            self.process.terminate()
            self.ended()


class Engine:
    """A process that runs a session for each line it reads and says in JSON what became of it."""

    count = 0
    pids: set[int] = set()
    patience_s = PATIENCE_S

    def __init__(self, sidecar: Sidecar, command: list, stop_at: Stop | None = None, **environment: str):
        """stop_at: it goes through a proxy, which stops it there."""
        Engine.count += 1
        self.proxy = Proxy(f"{sidecar.folder}/proxy{Engine.count}", stop_at) if stop_at else None
        lead = {"LD_PRELOAD": str(sidecar.preload), "DKV_CHAOS_SIDECAR": sidecar.socket}
        lead = {**lead, "DKV_CHAOS_PROXY": self.proxy.path} if self.proxy else {}
        self.errors = open(f"{sidecar.folder}/engine{Engine.count}.log", "w+")
        self.process = subprocess.Popen(
            [*WITH_US, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env={**os.environ, **lead, **environment},
        )  # fmt: skip
        self.keeps = 0  # Mappings that it has from its start to its end: vLLM's KV cache.
        self.pid, self.heard = self.process.pid, b""
        Engine.pids.add(self.pid)

    def line(self) -> dict | None:
        """None: it ended."""
        while b"\n" not in self.heard:
            if not select.select([self.process.stdout], [], [], self.patience_s)[0]:
                raise Broken(f"the engine has said nothing for {self.patience_s} s")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            self.heard += data
        line, self.heard = self.heard.split(b"\n", 1)
        return json.loads(line)

    def begin(self, wish: dict | None = None) -> None:
        try:
            self.process.stdin.write(json.dumps(wish or {}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended; line() says so.

    def session(self) -> dict | None:
        """The outcome; None: the engine ended."""
        outcome = self.line()
        if outcome is not None:
            self.line()  # Its pause before the next one.
        return outcome

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        """Its exit code. An engine that is alive is asked to end."""
        try:
            self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Broken("the engine does not end") from None
        finally:
            if self.proxy:
                self.proxy.close()
                os.unlink(self.proxy.path)
            self.errors.close()
        return self.process.returncode

    def said(self) -> str:
        return pathlib.Path(self.errors.name).read_text()[-800:]


def c_engine(sidecar: Sidecar, flags: list[str], stop_at: Stop | None = None, **environment: str) -> Engine:
    command = [sidecar.bin / "dkv_c_engine", "--endpoint", sidecar.endpoint, "--pause-before-session", *flags]
    engine = Engine(sidecar, [*command, "--sessions", "1000"], stop_at, **environment)
    engine.line()
    return engine


def crowd(sidecar: Sidecar, flags: list[str]) -> Engine:
    """An engine with several prompts at once, which runs them and ends."""
    command = [sidecar.bin / "dkv_c_engine", "--endpoint", sidecar.endpoint, *flags, "--at-once", "3", "--sessions", "2"]
    return Engine(sidecar, command)


def model_engine(kind: str, sidecar: Sidecar, stop_at: Stop) -> Engine:
    engine = Engine(sidecar, [*MODELS[kind], sidecar.endpoint], stop_at)
    engine.patience_s = 300  # A real model, on a machine that may have other work.
    engine.line()
    return engine


class Watcher:
    """`dkv watch`, which follows every session."""

    def __init__(self, sidecar: Sidecar):
        self.process = subprocess.Popen(
            [sidecar.bin / "dkv", "--endpoint", sidecar.endpoint, "--json", "watch"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "LD_PRELOAD": str(sidecar.preload)},
        )  # fmt: skip
        self.pid = self.process.pid
        waited_for(self.catches_interrupts, "dkv watch to begin")

    def catches_interrupts(self) -> bool:
        caught = re.search(r"SigCgt:\s*(\w+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())
        return bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)
