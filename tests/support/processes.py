"""Real programs for tests in Python: a dkvd on an endpoint of its own, and the controller."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 20


def program(name: str) -> Path:
    """A program that was built; without it the test is skipped, or fails under DKV_REQUIRE_E2E=1."""
    folder = Path(os.environ.get("DKV_BIN_DIR", ROOT / "build" / "release" / "bin"))
    path = folder / name
    if not path.is_file():
        message = f"{path} is not built (DKV_BIN_DIR chooses another folder)"
        if os.environ.get("DKV_REQUIRE_E2E") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


class Sidecar:
    """A dkvd of one test's own. start() again after kill() is what an operator's restart is."""

    def __init__(self, folder: Path, before: tuple[str, ...] = (), dkvd: Path | None = None):
        """before: a command that runs it, prlimit for example. dkvd: another one than what was built."""
        self._before = before
        self.endpoint = f"ipc://{folder}/dkvd.sock"
        self.log = folder / "dkvd.log"
        self.dkvd, self._dkv = dkvd or program("dkvd"), program("dkv")
        self.process: subprocess.Popen | None = None

    def start(self, *flags: str) -> "Sidecar":
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self._before, self.dkvd, "--endpoint", self.endpoint, *flags], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while self.dkv("status", check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dkvd did not start: {self.log.read_text()}")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def dkv(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self._dkv, "--endpoint", self.endpoint, *arguments],
            capture_output=True,
            text=True,
            check=check,
            timeout=30,
        )


@pytest.fixture
def sidecar(tmp_path_factory):
    """A running dkvd in a folder of its own, stopped with the test."""
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder)
    yield running.start()
    running.stop()


def cpu_seconds(pid: int) -> float:
    """What a process and its threads have taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_for(condition, what: str, seconds: float = START_S):
    """What `condition` returns once it is true; other processes need their time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")
