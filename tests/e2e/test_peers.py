"""Who may talk to whom, and how much of it: with real sockets, users and limits."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
from engines import DEVICE, SANITIZED, CEngine, run
from processes import Sidecar, program, waited_for

VICTIM, OTHER = 61001, 61002

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about sockets, whatever the device")


def attached(sidecar) -> list[dict]:
    listed = json.loads(sidecar.dkv("--json", "instances").stdout)["instances"]
    return [instance for instance in listed if instance["alive"]]


def as_user(user: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def test_connections_that_stay_open_leave_the_sidecar_its_descriptors(tmp_path):
    sidecar = Sidecar(tmp_path, before=("prlimit", "--nofile=64:64")).start()
    held = []
    for _ in range(200):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(5)
        waited_for(lambda: one.connect_ex(sidecar.endpoint.removeprefix("ipc://")) == 0, "a place in the backlog")
        held.append(one)

    refused = 0
    for one in held:  # What is closed at once is one too many; the others got ZeroMQ's greeting.
        try:
            refused += len(one.recv(1)) == 0
        except ConnectionResetError:
            refused += 1
    for one in held:
        one.close()

    assert 150 < refused < 200
    assert sidecar.process.poll() is None
    code, line = waited_for(lambda: (found := run(sidecar))[0] == 0 and found, "an engine that is served")
    assert line["committed"]
    sidecar.stop()


def test_a_socket_that_was_removed_is_made_again(sidecar):
    path = sidecar.endpoint.removeprefix("ipc://")
    os.unlink(path)

    waited_for(lambda: os.path.exists(path), "the socket")
    code, line = waited_for(lambda: (found := run(sidecar))[0] == 0 and found, "an engine that is served")
    assert line["committed"]
    assert "was removed: listening again" in sidecar.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become two other users")
def test_nothing_is_said_to_a_sidecar_of_another_user():
    """Another user makes the default folder first, and listens there."""
    folder = f"/tmp/dkv-{VICTIM}"
    listen = (
        "import os, socket, sys, time\n"
        "os.mkdir(sys.argv[1], 0o755); s = socket.socket(socket.AF_UNIX)\n"
        "s.bind(sys.argv[1] + '/dkvd.sock'); os.chmod(sys.argv[1] + '/dkvd.sock', 0o666); s.listen()\n"
        "print('listening', flush=True); time.sleep(60)\n"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("XDG_RUNTIME_DIR", "DKV_ENDPOINT")}
    subprocess.run(["rm", "-rf", folder], check=True)
    command = [*as_user(OTHER), "/usr/bin/python3", "-c", listen, folder]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "listening\n"
        # The programs may lie in a folder that only root can enter: they are run through a descriptor.
        dkv = os.open(program("dkv"), os.O_RDONLY)
        ended = subprocess.run(
            [*as_user(VICTIM), f"/proc/self/fd/{dkv}", "status"],
            capture_output=True, text=True, env=clean, timeout=60, pass_fds=[dkv],
        )  # fmt: skip
        os.close(dkv)
    finally:
        other.kill()
        other.wait()
        subprocess.run(["rm", "-rf", folder], check=True)

    assert ended.stderr == (
        f"dkv: folder '{folder}' belongs to user {OTHER}: a sidecar of this user listens in a folder of its own\n"
    )
    assert ended.returncode == 1


def test_an_engine_that_was_detached_attaches_again(sidecar):
    engine = CEngine(sidecar, "--pause-at-layer", "1")
    engine.line()
    (instance,) = attached(sidecar)

    ended = sidecar.dkv("detach", instance["instance"])

    assert ended.stdout == (
        f"Engine {instance['instance']} is detached: its memory is unmapped here. If it lives, it attaches again.\n"
    )
    assert not attached(sidecar)
    waited_for(lambda: attached(sidecar), "the engine to attach again")
    engine.process.kill()
    engine.process.communicate()
    missing = sidecar.dkv("detach", "0x123", check=False)
    assert missing.returncode == 1
    assert missing.stderr == "dkv: no engine 0x0000000000000123 is attached\n"


def test_an_engine_in_a_pid_namespace_is_missed_when_it_dies(sidecar):
    """Its own pid there is another process's here: the kernel says which one it is."""
    if os.geteuid() != 0:
        pytest.skip("needs a pid namespace")
    inside = ["unshare", "--pid", "--fork", "--kill-child", program("dkv_c_engine"), "--endpoint", sidecar.endpoint]
    engine = subprocess.Popen([*inside, "--pause-at-layer", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    engine.stdout.readline()
    assert attached(sidecar)

    engine.kill()
    engine.communicate()

    waited_for(lambda: not attached(sidecar), "the sidecar to miss it")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
@pytest.mark.parametrize("size", ["4m", "16m", "24m", "64m"])
def test_a_full_dev_shm_loses_no_row(tmp_path, size):
    """Arenas in it are reserved before they are lent, or refused; then the cache stays full."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    sidecar = Sidecar(tmp_path, before=("unshare", "-m", "bash", "-c", mount, "-")).start()
    enter = ["nsenter", "-t", str(sidecar.process.pid), "-m"]
    shape = ["--layers", "8", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--tokens", "4000"]
    command = [*enter, program("dkv_c_engine"), "--endpoint", sidecar.endpoint, "--arena", "posix_shm", *shape]
    ended = subprocess.run(
        [*command, "--capacity", "2000", "--policy", "snapkv"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "DKV_ARENA": "posix_shm"},
    )  # fmt: skip
    sidecar.stop()

    assert ended.returncode >= 0, "the engine died of a signal"
    said = json.loads(ended.stdout.splitlines()[-1]) if ended.stdout else {"committed": False, "rows_wrong": 0}
    assert said["rows_wrong"] == 0
    if not said["committed"]:
        assert "No space left on device" in ended.stdout + ended.stderr
    assert said["committed"] == (size == "64m")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives capabilities away")
@pytest.mark.parametrize("proc", ["shown", "hidden"])
def test_an_engine_that_may_do_more_than_the_sidecar_is_told_what_to_do(tmp_path, proc):
    """Root without capabilities, as systemd starts services; with ProtectProc= /proc hides the engine altogether."""
    own = "mount -t proc -o hidepid=2 proc /proc && " if proc == "hidden" else ""
    without = f'{own}exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    sidecar = Sidecar(tmp_path, before=("unshare", "-m", "bash", "-c", without, "-")).start()

    code, line = run(sidecar)

    assert not line["committed"] and line["status"] == "permission_denied"
    assert "start the engine without capabilities, or set DKV_ARENA=posix_shm for it" in line["error"]
    assert run(sidecar, DKV_ARENA="posix_shm")[1]["committed"]
    sidecar.stop()


def test_idle_connections_to_the_metrics_stop_no_scrape(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sidecar = Sidecar(tmp_path).start("--metrics", f"127.0.0.1:{port}")
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=15) as answer:
        assert b"dkv_" in answer.read()

    for one in idle:
        one.close()
    sidecar.stop()


def test_a_log_that_is_not_read_does_not_stop_the_sidecar(tmp_path):
    """What a full pipe does not take is dropped, and counted in the next line that it takes."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    endpoint = f"ipc://{tmp_path}/dkvd.sock"
    process = subprocess.Popen([program("dkvd"), "--endpoint", endpoint], stderr=write)
    dkv = [program("dkv"), "--endpoint", endpoint]
    try:
        waited_for(lambda: subprocess.run([*dkv, "status"], capture_output=True).returncode == 0, "the sidecar")

        for _ in range(60):  # Each is a line of some 80 bytes.
            refused = subprocess.run([*dkv, "detach", "0x123"], capture_output=True, timeout=60)
            assert refused.returncode == 1
        assert process.poll() is None

        os.set_blocking(read, False)
        os.read(read, 65536)
        subprocess.run([*dkv, "detach", "0x123"], capture_output=True, timeout=60)
        text = waited_for(lambda: os.read(read, 65536).decode(), "a line")
        assert "lines were dropped: stderr was not read" in text
        assert "Detach refused: no engine 0x0000000000000123 is attached" in text
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
        os.close(read)
        os.close(write)


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
def test_a_sidecar_of_root_says_so(sidecar):
    assert "running as root" in sidecar.log.read_text()


def test_names_that_killed_engines_left_in_dev_shm_go_when_a_sidecar_starts(tmp_path):
    left = Path("/dev/shm/dkv-1-left-by-a-test")
    left.write_bytes(bytes(8192))

    sidecar = Sidecar(tmp_path).start()

    assert not left.exists()
    assert "names in /dev/shm that killed engines had left are gone" in sidecar.log.read_text()
    sidecar.stop()


limits_memory = pytest.mark.skipif(SANITIZED, reason="a sanitizer ends a program that gets no memory")


def address_space(sidecar, limit: str) -> None:
    subprocess.run(["prlimit", f"--pid={sidecar.process.pid}", f"--as={limit}:"], check=True)


def no_more_address_space(sidecar) -> None:
    """Neither a mapping nor a thread, which has its stack in one; small pieces of memory there are."""
    text = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmSize:"))
    address_space(sidecar, str((kib + 1024) * 1024))


@limits_memory
def test_a_sidecar_without_a_thread_for_an_engine_refuses_it_and_serves_the_next(sidecar):
    no_more_address_space(sidecar)

    code, line = run(sidecar)

    assert line["status"] == "limit_exceeded"
    assert "the system gives no more threads: see RLIMIT_NPROC" in line["error"]
    assert not attached(sidecar)
    address_space(sidecar, "unlimited")
    code, line = run(sidecar)
    assert line["committed"], line


@limits_memory
def test_a_sidecar_without_memory_for_a_prompt_refuses_it_and_serves_the_next(sidecar):
    engine = CEngine(sidecar, "--pause-at-layer", "1", tokens=2000)
    engine.line()
    no_more_address_space(sidecar)
    engine.go_on()

    _, lines = engine.end()

    assert not lines[-1]["committed"] or lines[-1]["rows_wrong"] == 0
    code, line = run(sidecar, tokens=2000)
    assert line["status"] in ("limit_exceeded", "io"), line
    assert line["rows_wrong"] == 0
    address_space(sidecar, "unlimited")
    code, line = run(sidecar, tokens=2000)
    assert line["committed"], line
