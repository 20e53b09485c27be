"""Controllers over TCP, with keys: real processes, real files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from engines import DEVICE, GEOMETRY, run
from processes import Sidecar, program, waited_for

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about sockets, whatever the device")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def make_keys(home: Path) -> Path:
    """What `dkv keys` makes for the user of this home."""
    subprocess.run([program("dkv"), "keys"], env=environment(home), check=True, capture_output=True, timeout=30)
    return home / "dkv"


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(home)}


class Control:
    """A sidecar that takes alice's key, and alice, whose machine knows the sidecar's."""

    def __init__(self, folder: Path):
        self.sidecar_keys = make_keys(folder / "server")
        self.alice = folder / "alice"
        self.alice_keys = make_keys(self.alice)
        self.clients = self.sidecar_keys / "clients"
        self.clients.mkdir(mode=0o700)
        shutil.copy(self.alice_keys / "dkv.key", self.clients / "alice.key")
        (self.alice_keys / "sidecars").mkdir()
        self.known_sidecar = self.alice_keys / "sidecars" / "127.0.0.1.key"
        shutil.copy(self.sidecar_keys / "dkv.key", self.known_sidecar)
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.flags = ["--control", self.endpoint, "--secret-key", str(self.sidecar_keys / "dkv.key_secret")]
        self.sidecar = Sidecar(folder)

    def dkv(self, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program("dkv"), "--endpoint", self.endpoint, *arguments],
            env=environment(home or self.alice), capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def refused_start(self) -> str:
        ended = subprocess.run(
            [program("dkvd"), "--endpoint", self.sidecar.endpoint, *self.flags],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert ended.returncode == 1
        return ended.stderr.splitlines()[-1]


@pytest.fixture
def control(tmp_path):
    tmp_path.chmod(0o700)
    one = Control(tmp_path)
    yield one
    one.sidecar.stop()


def test_a_controller_with_a_key_steers_while_engines_attach_here(control):
    control.sidecar.start(*control.flags)
    code, line = run(control.sidecar)
    assert code == 0 and line["committed"]

    there = json.loads(control.dkv("--json", "status").stdout)["sidecar"]
    assert there["pid"] == control.sidecar.process.pid
    assert control.dkv("policy", "set", "knorm", "--capacity", "300").returncode == 0
    here = json.loads(control.sidecar.dkv("--json", "policy", "list").stdout)
    assert json.loads(control.dkv("--json", "policy", "list").stdout) == here
    sessions = json.loads(control.dkv("--json", "sessions").stdout)["sessions"]
    assert len(sessions) == 1
    for command in (["instances"], ["savings"], ["version"], ["sessions", sessions[0]["session"]]):
        assert control.dkv(*command).returncode == 0

    assert control.dkv("stop").returncode == 0
    assert control.sidecar.process.wait(20) == 0
    assert "controller 'alice' connects from 127.0.0.1" in control.sidecar.log.read_text()


def test_a_controller_watches_and_detaches_over_tcp(control):
    control.sidecar.start(*control.flags)
    watcher = subprocess.Popen(
        [program("dkv"), "--endpoint", control.endpoint, "watch", "--json"],
        env=environment(control.alice), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    kinds = []
    try:
        waited_for(lambda: "controller 'alice' connects" in control.sidecar.log.read_text(), "the watcher")
        while "session_committed" not in kinds:
            run(control.sidecar)
            kinds.append(json.loads(watcher.stdout.readline())["kind"])
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=20)
    assert control.dkv("detach", "0x123").stderr == "dkv: no engine 0x0000000000000123 is attached\n"


def test_what_is_missing_on_the_controllers_side_is_said(control, tmp_path):
    control.sidecar.start(*control.flags)

    keyless = control.dkv("status", home=tmp_path / "keyless")
    secret = tmp_path / "keyless" / "dkv" / "dkv.key_secret"
    assert keyless.stderr == (
        f"dkv: {control.endpoint} takes a key of yours, and '{secret}' is not there: dkv keys makes it\n"
    )
    assert keyless.returncode == 1

    control.known_sidecar.unlink()
    assert control.dkv("status").stderr == (
        f"dkv: the public key of the sidecar at {control.endpoint} is not known: copy its dkv.key to "
        f"'{control.known_sidecar}', or name the file with --sidecar-key\n"
    )
    named = control.dkv("status", "--sidecar-key", str(control.sidecar_keys / "dkv.key"))
    assert named.returncode == 0, named.stderr

    (control.alice_keys / "dkv.key_secret").chmod(0o640)
    named = control.dkv("status", "--sidecar-key", str(control.sidecar_keys / "dkv.key"))
    assert named.stderr == (
        f"dkv: key file '{control.alice_keys / 'dkv.key_secret'}' has mode 0640: others can use it; "
        "chmod 600 makes it yours alone\n"
    )


def test_wrong_keys_are_one_clear_line(control, tmp_path):
    control.sidecar.start(*control.flags)
    mallory = tmp_path / "mallory"
    keys = make_keys(mallory)
    (keys / "sidecars").mkdir()
    shutil.copy(control.known_sidecar, keys / "sidecars")
    key = re.search(r'public-key = "(.+)"', (keys / "dkv.key").read_text()).group(1)

    stranger = control.dkv("--timeout-ms", "30000", "status", home=mallory)
    assert stranger.stderr == (
        f"dkv: the sidecar at {control.endpoint} does not let this key in ({key}): "
        "its operator copies your dkv.key to its clients folder, as NAME.key\n"
    )
    assert stranger.returncode == 1
    assert f"key {key} is not in '{control.clients}'" in control.sidecar.log.read_text()

    shutil.copy(keys / "dkv.key", control.known_sidecar)
    other = control.dkv("--timeout-ms", "30000", "status")
    assert other.stderr == (
        f"dkv: the sidecar at {control.endpoint} ended the handshake: its key is not the one in "
        f"'{control.known_sidecar}', it takes no keys, or it has as many connections as it takes\n"
    )
    assert other.returncode == 1


def test_a_control_socket_needs_its_keys(control):
    secret = control.sidecar_keys / "dkv.key_secret"
    secret.chmod(0o640)
    assert control.refused_start() == (
        f"dkvd: key file '{secret}' has mode 0640: others can use it; chmod 600 makes it yours alone"
    )
    secret.unlink()
    assert control.refused_start() == (
        f"dkvd: {control.endpoint} needs a secret key, and '{secret}' is not there: dkv keys makes it"
    )


def test_keys_that_are_there_stay(control):
    before = (control.alice_keys / "dkv.key_secret").read_bytes()

    again = subprocess.run(
        [program("dkv"), "keys"], env=environment(control.alice), capture_output=True, text=True, timeout=30
    )

    assert again.returncode == 1
    assert again.stderr == (
        f"dkv: '{control.alice_keys / 'dkv.key_secret'}' is there already: a key in use is not replaced; "
        "move it away to make a new one\n"
    )
    assert (control.alice_keys / "dkv.key_secret").read_bytes() == before


@pytest.mark.parametrize("where", ["control", "endpoint"])
def test_an_engine_over_tcp_is_refused(control, where):
    """The SDK does not even connect. A sidecar whose only endpoint is TCP serves no engine and no command."""
    if where == "control":
        control.sidecar.start(*control.flags)
    else:
        with open(control.sidecar.log, "ab") as log:
            control.sidecar.process = subprocess.Popen([program("dkvd"), "--endpoint", control.endpoint], stderr=log)
        waited_for(lambda: "serves no engine" in control.sidecar.log.read_text(), "the warning")

    engine = subprocess.run(
        [program("dkv_c_engine"), "--endpoint", control.endpoint, *GEOMETRY, "--tokens", "100"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (
        f"endpoint '{control.endpoint}' can be another machine: engines attach over ipc:// alone, "
        "where memory can be lent"
    ) in engine.stdout + engine.stderr
    if where == "endpoint":
        assert re.fullmatch(
            f"dkv: the sidecar at {control.endpoint} .*takes no keys.*\n", control.dkv("status").stderr
        )


def test_connections_over_tcp_leave_engines_their_places(control, tmp_path):
    """Strangers who connect and say nothing hold a sixteenth of the places, for five seconds."""
    control.sidecar = Sidecar(tmp_path, before=("prlimit", "--nofile=256:256")).start(*control.flags)
    host, port = control.endpoint.removeprefix("tcp://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(150)]

    code, line = run(control.sidecar)

    assert code == 0 and line["committed"]
    for one in held:
        one.close()
    waited_for(lambda: control.dkv("status").returncode == 0, "a place for the controller")
