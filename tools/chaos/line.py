"""A proxy between an engine's socket and dkvd's: it sees every message, and may stop, lose, repeat or reorder it.

The engine comes with the socket that it has connected to dkvd itself (through.c). Spoken here is ZMTP 3.1 without
security (rfc.zeromq.org/spec/37): 64 bytes of greeting, then frames. Commands pass.
"""

from __future__ import annotations

import array
import dataclasses
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from states import DOWN, UP, Reached, message_names

NAMES = message_names()
GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4
SWAP_S = 0.3  # How long the first of two messages waits for the second.


@dataclasses.dataclass
class Message:
    way: str
    name: str
    frames: bytes


def fields(body: bytes) -> tuple[int, str]:
    """Of an Envelope (protocol/schema/dkv.fbs): id, and the name of the body."""
    root = struct.unpack_from("<I", body)[0]
    table = root - struct.unpack_from("<i", body, root)[0]
    entries = (struct.unpack_from("<H", body, table)[0] - 4) // 2
    offsets = struct.unpack_from(f"<{entries}H", body, table + 4)
    at = lambda field: offsets[field] if field < entries else 0  # noqa: E731
    number = struct.unpack_from("<Q", body, root + at(1))[0] if at(1) else 0
    return number, NAMES[body[root + at(3)]] if at(3) else NAMES[0]


class Frames:
    """Bytes of one direction in, pieces out: (frames, body), without a body where a piece is not a message."""

    def __init__(self):
        self.rest, self.greeted = b"", 0

    def feed(self, data: bytes):
        if self.greeted < GREETING_BYTES:
            greeting, data = data[: GREETING_BYTES - self.greeted], data[GREETING_BYTES - self.greeted :]
            self.greeted += len(greeting)
            yield greeting, None
        self.rest += data
        while len(self.rest) >= 2:
            flags, head = self.rest[0], 9 if self.rest[0] & LONG else 2
            if len(self.rest) < head:
                return
            size = int.from_bytes(self.rest[1:head], "big")
            if len(self.rest) < head + size:
                return
            whole, self.rest = self.rest[: head + size], self.rest[head + size :]
            yield whole, None if flags & (COMMAND | MORE) else whole[head:]


class Stop:
    """Calls `then` once, at the first message that is at the place, while that message is held."""

    def __init__(self, place: Reached, then: Callable[["Line", Message], list[str] | None], skip: int = 0):
        self.place, self.then, self.skip = place, then, skip
        self.passed = not place.after
        self.error: Exception | None = None
        self.done = threading.Event()

    def look(self, line: "Line", message: Message) -> str | bytes:
        """What is to become of the message: "pass", "lose", "repeat", "swap" (with the next one), or other frames."""
        if self.done.is_set():
            return "pass"
        here = self.passed and (message.way, message.name) == (self.place.way, self.place.message)
        if here and self.skip > 0:
            self.skip, here = self.skip - 1, False
        self.passed = self.passed or message.name == self.place.after
        if not here:
            return "pass"
        try:
            return self.then(line, message) or "pass"
        except Exception as error:  # The runner's to report; the line goes on.
            self.error = error
            return "pass"
        finally:
            self.done.set()


class Line(threading.Thread):
    """One connection. Both directions in one thread: while a message is held, nothing passes."""

    def __init__(self, proxy: "Proxy", engine: socket.socket, sidecar: socket.socket):
        super().__init__(daemon=True)
        self.proxy, self.sockets = proxy, {UP: sidecar, DOWN: engine}  # Where each direction leads.
        self.asked: dict[int, str] = {}
        self.kept: dict[str, tuple[float, bytes]] = {}  # First of two messages that change places.

    def run(self) -> None:
        sources = {self.sockets[DOWN]: (UP, Frames()), self.sockets[UP]: (DOWN, Frames())}
        try:
            while True:
                ready, _, _ = select.select(list(sources), [], [], 0.05)
                self.release_late()
                for source in ready:
                    way, frames = sources[source]
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    for whole, body in frames.feed(data):
                        self.take(way, whole, body)
        except OSError:
            return  # An end is gone.
        finally:
            for one in self.sockets.values():
                one.close()

    def send(self, way: str, data: bytes) -> None:
        self.sockets[way].sendall(data)

    def take(self, way: str, whole: bytes, body: bytes | None) -> None:
        if body is None:
            return self.send(way, whole)
        number, name = fields(body)
        if way == UP:
            self.asked[number] = name
        elif number:
            name = f"{name}({self.asked.get(number, '')})"
        fate = self.proxy.fate(self, Message(way, name, whole))
        if isinstance(fate, bytes):
            whole = fate
        first = self.kept.pop(way, None)
        if fate == "swap" and first is None:
            self.kept[way] = (time.monotonic() + SWAP_S, whole)
            return
        if fate != "lose":
            self.send(way, whole)
        if fate == "repeat":
            self.send(way, whole)
        if first is not None:
            self.send(way, first[1])

    def release_late(self) -> None:
        for way, (until, whole) in list(self.kept.items()):
            if time.monotonic() > until:
                del self.kept[way]
                self.send(way, whole)


class Proxy:
    """Listens for one engine's connections."""

    def __init__(self, path: str, stop_at: Stop):
        self.path, self.stop_at = path, stop_at
        self.storm: tuple[random.Random, float] | None = None  # Every message: a chance of a fate.
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while self.listener.fileno() >= 0:
            try:
                engine, _ = self.listener.accept()
                _, control, _, _ = engine.recvmsg(1, socket.CMSG_SPACE(4))
            except OSError:
                continue  # The engine is gone again, or this proxy was closed.
            handed = array.array("i", b"".join(data[:4] for _, _, data in control))
            if not handed:
                engine.close()
                continue
            sidecar = socket.socket(fileno=handed[0])
            sidecar.setblocking(True)
            Line(self, engine, sidecar).start()

    def fate(self, line: Line, message: Message) -> str | bytes:
        if self.storm is not None:
            rng, chance = self.storm
            if rng.random() < chance:
                return rng.choice(("lose", "repeat", "swap"))
        return self.stop_at.look(line, message)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
