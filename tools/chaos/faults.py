"""What may go wrong, and what is promised all the same."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import random
import resource
import signal
import threading
import time
from collections.abc import Callable

from actors import Engine, Sidecar, Watcher
from line import Line, Message

DEADLINE_MS = 20_000  # On a busy machine, too.
SHORT_S = 0.25  # A pause shorter than every deadline.
SILENCE_S = 5.6  # Beyond ten heartbeats of HEARTBEAT_MS.
HEARTBEAT_MS = 500  # An engine gives a sidecar up after five: on a busy machine shorter ones are missed.
STORM = 0.08  # The share of messages that a storm hits.
DRAINED = ("open", "prefill", "planned")  # A dkvd that is to end waits for these.
DECIDED = ("committed", "adopted", "closed")  # The engine has its packed rows.


@dataclasses.dataclass
class Scene:
    """What a fault can get at, while the line is held at a state."""

    sidecar: Sidecar
    engine: Engine
    watcher: Watcher | None
    state: str
    rng: random.Random
    undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)  # Once the session is over.

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.start()
        self.undo.append(timer.join)

    def pid(self, whom: str) -> int:
        return {"dkvd": self.sidecar.process.pid, "engine": self.engine.pid, "dkv": self.watcher and self.watcher.pid}[whom]


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    strike: Callable[[Scene, Line, Message], str | None]  # "lose", "repeat", "swap": the fate of the held message.
    must_compress: bool = False  # Else the prompt may stay whole, or partly …
    must_compress_in: tuple[str, ...] = ()  # … but in these states.
    hits_dkvd: bool = False  # Other engines' prompts may stay whole, too.
    ends_dkvd: int | None = None  # Its exit code.
    ends_engine: int | None = None
    may_lack: bool = False  # The engine itself may end for want of memory or descriptors, with exit code 1.
    deadline_ms: int = DEADLINE_MS  # Of the engine.
    needs_named_memory: bool = False
    watched: bool = False
    ends_watcher: int = 0  # Exit code of `dkv watch`, which goes on until Ctrl-C.

    def promises_compression(self, state: str) -> bool:
        must = self.must_compress or state in (*DECIDED, *self.must_compress_in)
        return must and state != "failed" and self.ends_engine is None


def send(whom: str, number: int):
    def strike(scene: Scene, *_) -> None:
        os.kill(scene.pid(whom), number)

    return strike


def kill_dkvd(scene: Scene, *_) -> None:
    scene.sidecar.process.kill()
    scene.sidecar.process.wait()


def stop(whom: str, seconds: float | None):
    """None: until the session is over."""

    def strike(scene: Scene, *_) -> None:
        pid = scene.pid(whom)
        os.kill(pid, signal.SIGSTOP)
        if seconds is None:
            scene.undo.append(lambda: os.kill(pid, signal.SIGCONT))
        else:
            scene.later(seconds, lambda: os.kill(pid, signal.SIGCONT))

    return strike


def interrupt(whom: str):
    def strike(scene: Scene, *_) -> None:
        pid, over = scene.pid(whom), threading.Event()

        def storm() -> None:
            while not over.wait(0.0005) and scene_alive(pid):
                os.kill(pid, signal.SIGUSR1)

        thread = threading.Thread(target=storm)
        thread.start()
        scene.undo += [over.set, thread.join]

    return strike


def limit(whom: str, what: int, left: Callable[[int], int]):
    """No more of it than there is now, and `left`."""

    def strike(scene: Scene, *_) -> None:
        pid = scene.pid(whom)
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (left(pid), before[1]))
        scene.undo.append(lambda: scene_alive(pid) and resource.prlimit(pid, what, before))

    return strike


def scene_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/statm")


def descriptors_now(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1


def address_space_now(pid: int) -> int:
    return os.sysconf("SC_PAGE_SIZE") * int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0]) + (1 << 20)


def fill_shm(scene: Scene, *_) -> None:
    filler = pathlib.Path("/dev/shm/filler")
    left = scene.rng.choice((0, 0, 65536))
    scene.undo.append(lambda: filler.unlink(missing_ok=True))
    with open(filler, "wb") as file:
        while (free := os.statvfs("/dev/shm")).f_bavail * free.f_frsize > left:
            try:
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
                return
            except OSError as full:
                if full.errno != errno.ENOSPC:  # Another engine took some of it in between.
                    raise


def fate(name: str):
    return lambda *_: name


def delay(scene: Scene, *_) -> None:
    time.sleep(SHORT_S)


def storm(scene: Scene, *_) -> None:
    scene.engine.proxy.storm = (random.Random(scene.rng.random()), STORM)
    scene.undo.append(lambda: setattr(scene.engine.proxy, "storm", None))


FAULTS = [
    Fault("kill dkvd", kill_dkvd, hits_dkvd=True, ends_dkvd=-signal.SIGKILL),
    Fault("end dkvd", send("dkvd", signal.SIGTERM), hits_dkvd=True, ends_dkvd=0, must_compress_in=DRAINED),
    Fault("stop dkvd", stop("dkvd", SHORT_S), must_compress=True),
    Fault("hang dkvd", stop("dkvd", None), hits_dkvd=True, deadline_ms=1000),
    Fault("interrupt dkvd", interrupt("dkvd"), must_compress=True),
    Fault("kill engine", send("engine", signal.SIGKILL), ends_engine=-signal.SIGKILL),
    Fault("end engine", send("engine", signal.SIGTERM), ends_engine=-signal.SIGTERM),
    Fault("stop engine", stop("engine", SHORT_S), must_compress=True),
    Fault("hang engine", stop("engine", SILENCE_S)),
    Fault("interrupt engine", interrupt("engine"), must_compress=True),
    Fault("kill dkv", send("dkv", signal.SIGKILL), must_compress=True, watched=True, ends_watcher=-signal.SIGKILL),
    Fault("end dkv", send("dkv", signal.SIGTERM), must_compress=True, watched=True),
    Fault("stop dkv", stop("dkv", None), must_compress=True, watched=True),
    Fault("interrupt dkv", interrupt("dkv"), must_compress=True, watched=True),
    Fault("no descriptors in dkvd", limit("dkvd", resource.RLIMIT_NOFILE, descriptors_now), hits_dkvd=True),
    Fault("no descriptors in engine", limit("engine", resource.RLIMIT_NOFILE, descriptors_now), may_lack=True),
    Fault("no memory in dkvd", limit("dkvd", resource.RLIMIT_AS, address_space_now), hits_dkvd=True),
    Fault("no memory in engine", limit("engine", resource.RLIMIT_AS, address_space_now), may_lack=True),
    Fault("full /dev/shm", fill_shm, hits_dkvd=True, may_lack=True, needs_named_memory=True),
    Fault("delay a message", delay, must_compress=True),
    Fault("repeat a message", fate("repeat"), must_compress=True),
    Fault("reorder messages", fate("swap"), deadline_ms=1000),
    Fault("lose a message", fate("lose"), deadline_ms=1000),
    Fault("storm of messages", storm, deadline_ms=1000),
]
