"""A clean Debian machine with the package, booted by systemd in a container of its own: `make test-deb`.

DKV_DEB names the package, DKV_DEBIAN_ROOT a tar of a bare Debian with systemd, DKV_BIN_DIR the engine in C.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from processes import program, waited_for  # noqa: E402

ENDPOINT = "ipc:///run/dkv/dkvd.sock"
BOOT_S = 60


def checked(words, **how) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **how)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


class Machine:
    """systemd as the container's first process, reached with nsenter; without a network."""

    def __init__(self, root: Path):
        self.root = root
        self._nspawn = ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "--console=pipe", "-D", root]
        self._booted: subprocess.Popen | None = None
        self._leader = ""

    def run_unbooted(self, *words: str) -> str:
        """Without systemd, and with this machine's network: for apt."""
        return checked([*self._nspawn, *words], timeout=600)

    def boot(self) -> None:
        log = open(self.root.parent / "boot.log", "wb")
        self._booted = subprocess.Popen(
            [*self._nspawn, "--private-network", "-b"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        self._leader = waited_for(self._find_leader, "the container", BOOT_S)
        waited_for(lambda: self.run("systemctl", "is-system-running", codes=None).strip() == "running", "systemd", BOOT_S)

    def _find_leader(self) -> str | None:
        """nspawn's child that has become systemd: the first one only prepares the place."""
        pid = self._booted.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
            except OSError:  # It ended meanwhile.
                continue
        return None

    def shut_down(self) -> None:
        if self._booted is not None:
            self._booted.terminate()
            self._booted.wait(BOOT_S)

    def run(self, *words: str, codes=(0,), user: str = "root", **environment: str) -> str:
        """What it says, of stdout alone where it was to succeed."""
        as_user = ["runuser", "-u", user, "--"] if user != "root" else []
        variables = [f"{name}={value}" for name, value in {"DKV_ENDPOINT": ENDPOINT, **environment}.items()]
        enter = ["nsenter", "-t", self._leader, "-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        done = subprocess.run(
            [*enter, "env", *variables, *as_user, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
        )
        assert codes is None or done.returncode in codes, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if codes == (0,) else done.stdout + done.stderr

    def unit(self, name: str) -> str:
        return self.run("systemctl", "show", "dkvd", "--value", "-p", name).strip()

    def engine(self, before=(), **how) -> dict:
        geometry = "--layers 6 --q-heads 6 --kv-heads 2 --head-dim 64 --tokens 600".split()
        return json.loads(self.run(*before, "dkv_c_engine", "--endpoint", ENDPOINT, *geometry, **how).splitlines()[-1])

    def drop_in(self, text: str) -> None:
        folder = self.root / "etc/systemd/system/dkvd.service.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.conf").write_text(text)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", "dkvd")

    def no_drop_in(self) -> None:
        shutil.rmtree(self.root / "etc/systemd/system/dkvd.service.d", ignore_errors=True)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed", "dkvd", codes=None)
        self.run("systemctl", "restart", "dkvd")


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.fail("containers need root: run make test-deb as root")
    root = tmp_path_factory.mktemp("machine") / "root"
    root.mkdir()
    checked(["tar", "-xf", os.environ["DKV_DEBIAN_ROOT"], "-C", root])
    package = Path(os.environ["DKV_DEB"])
    shutil.copy(package, root / "opt" / package.name)
    engine = program("dkv_c_engine")
    shutil.copy(engine, root / "usr" / "bin")
    for cuda in engine.parents[1].glob("lib/libdkv_cuda.so.1"):  # Where the engine was built with CUDA.
        shutil.copy(cuda, root / "usr" / "lib")
    one = Machine(root)
    install = f"apt-get update -q && apt-get install -y -q --no-install-recommends /opt/{package.name}"
    one.run_unbooted("sh", "-c", install)
    try:
        one.boot()
        yield one
    finally:
        one.shut_down()
