"""What dkvd tells its supervisor, heard by a datagram socket where systemd's would be."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import contextmanager

import pytest
from processes import Sidecar

PATIENCE_S = 20


class Heard:
    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.bind(address)

    def next(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def pause(self) -> None:
        """Takes what has come already."""
        self.socket.settimeout(0)
        try:
            while self.socket.recv(4096):
                pass
        except BlockingIOError:
            self.socket.settimeout(PATIENCE_S)


@contextmanager
def supervised(folder, address: str, **environment: str):
    """dkvd with these variables beside NOTIFY_SOCKET, as systemd would start it."""
    words = [f"{name}={value}" for name, value in {"NOTIFY_SOCKET": address, **environment}.items()]
    sidecar = Sidecar(folder, before=("env", *words))
    try:
        yield sidecar
    finally:
        sidecar.stop()


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
def test_ready_is_said_once_engines_can_connect_and_stopping_at_the_end(folder, abstract):
    name = f"dkv-test-{os.getpid()}"
    heard = Heard(f"\0{name}" if abstract else f"{folder}/notify")
    with supervised(folder, f"@{name}" if abstract else f"{folder}/notify") as sidecar:
        sidecar.start()

        assert heard.next() == {"READY": "1", "STATUS": f"listens at {sidecar.endpoint}"}
        sidecar.process.terminate()
        assert heard.next() == {"STOPPING": "1"}  # And no watchdog: none was asked for.
        assert sidecar.process.wait(PATIENCE_S) == 0


def test_dkv_stop_is_no_failure_that_a_supervisor_would_restart_after(folder):
    heard = Heard(f"{folder}/notify")
    with supervised(folder, f"{folder}/notify") as sidecar:
        sidecar.start()
        heard.next()

        sidecar.dkv("stop")

        assert heard.next() == {"STOPPING": "1"}
        assert sidecar.process.wait(PATIENCE_S) == 0


def test_a_reload_begins_and_ends_whether_the_file_was_right_or_not(folder):
    heard, config = Heard(f"{folder}/notify"), folder / "dkvd.toml"
    config.write_text("capacity = 100\n")
    with supervised(folder, f"{folder}/notify") as sidecar:
        sidecar.start("--config", str(config))
        ready = heard.next()

        for text in ("capacity = 200\n", "capacity = -1\n"):
            config.write_text(text)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            sidecar.process.send_signal(signal.SIGHUP)

            begun = heard.next()
            assert begun["RELOADING"] == "1" and int(begun["MONOTONIC_USEC"]) >= before
            assert heard.next() == ready

        assert "capacity=200" in sidecar.dkv("status").stdout


def test_the_watchdog_is_fed_while_messages_are_handled_and_not_by_a_stopped_process(folder):
    heard = Heard(f"{folder}/notify")
    with supervised(folder, f"{folder}/notify", WATCHDOG_USEC="400000") as sidecar:
        sidecar.start("--heartbeat-ms", "50")
        heard.next()
        assert [heard.next() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3

        sidecar.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sidecar.process.pid, os.WSTOPPED | os.WNOWAIT)
        heard.pause()
        heard.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            heard.next()
        heard.socket.settimeout(PATIENCE_S)
        sidecar.process.send_signal(signal.SIGCONT)

        assert heard.next() == {"WATCHDOG": "1"}


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(folder):
    heard = Heard(f"{folder}/notify")
    with supervised(folder, f"{folder}/notify", WATCHDOG_USEC="100000", WATCHDOG_PID="1") as sidecar:
        sidecar.start("--heartbeat-ms", "10")
        heard.next()

        heard.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            heard.next()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NOTIFY_SOCKET": "/nowhere/notify"}, "NOTIFY_SOCKET='/nowhere/notify' cannot be reached"),
        ({"NOTIFY_SOCKET": "notify"}, "NOTIFY_SOCKET='notify' cannot be reached"),
        ({"NOTIFY_SOCKET": "/" + "n" * 200}, "cannot be reached, the supervisor is told nothing"),
        ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC='soon' is not a number above 0: it is ignored"),
    ],
    ids=["none there", "no address", "too long", "no time"],
)
def test_what_a_supervisor_got_wrong_is_logged_and_dkvd_serves(folder, environment, said):
    heard = Heard(f"{folder}/notify")
    with supervised(folder, f"{folder}/notify", **environment) as sidecar:
        sidecar.start()

        assert sidecar.dkv("status").returncode == 0
        assert said in sidecar.log.read_text()
    heard.socket.close()
