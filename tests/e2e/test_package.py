"""What is in the Debian package, and what its unit allows. Installed and running: tests/package."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from engines import CEngine
from processes import ROOT, Sidecar, program

DEBIAN = ROOT / "tools" / "package" / "debian"
UNIT = DEBIAN / "dkvd.service"
VERSION = re.search(r"project\(dkv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
EXPOSURE_MAX = 2.5  # Of 10: systemd-analyze(1).


def said_by(*words) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    said_by("cpack", "--config", program("dkv").parents[1] / "CPackConfig.cmake", "-B", folder)
    return next(folder.glob("*.deb"))


def test_the_package_has_these_files_and_no_others(package):
    libraries = f"usr/lib/{said_by('dpkg-architecture', '-qDEB_HOST_MULTIARCH').strip()}"
    shared = [
        f"{libraries}/{name}.so{end}" for name in ("libdkv", "libdkv_llama") for end in ("", ".1", f".{VERSION}")
    ]
    profiles = [f"usr/share/dkv/profiles/{path.name}" for path in ROOT.glob("protocol/python/dkv/profiles/*.json")]
    expected = {
        "etc/dkv/dkvd.toml",
        "usr/bin/dkv",
        "usr/bin/dkvd",
        "usr/include/dkv.h",
        "usr/include/dkv_llama.h",
        "usr/lib/systemd/system/dkvd.service",
        "usr/lib/sysusers.d/dkv.conf",
        "usr/share/bash-completion/completions/dkv",
        "usr/share/doc/dkv/changelog.Debian.gz",
        "usr/share/doc/dkv/changelog.gz",
        "usr/share/doc/dkv/copyright",
        "usr/share/fish/vendor_completions.d/dkv.fish",
        "usr/share/lintian/overrides/dkv",
        "usr/share/man/man1/dkv.1.gz",
        "usr/share/man/man8/dkvd.8.gz",
        "usr/share/zsh/vendor-completions/_dkv",
        "usr/lib/dkv/libdkv_llama_preload.so",
        *shared,
        *profiles,
    }
    listed = [line.split(maxsplit=5) for line in said_by("dpkg-deb", "-c", package).splitlines()]
    files = {path.partition(" -> ")[0].removeprefix("./") for mode, *_, path in listed if not mode.startswith("d")}
    assert files - {"usr/include/dkv_cuda.h"} - {path for path in files if "libdkv_cuda" in path} == expected
    assert {owner for _, owner, *_ in listed} == {"root/root"}


def test_the_package_depends_on_what_is_linked_and_keeps_the_administrators_config(package):
    fields = {name: said_by("dpkg-deb", "-f", package, name).strip() for name in ("Version", "Depends")}
    assert fields["Version"] == f"{VERSION}-1"
    assert {"libzmq5", "libtbb12", "libstdc++6"} <= set(re.findall(r"[\w.+-]+", fields["Depends"]))
    assert said_by("dpkg-deb", "-I", package, "conffiles") == "/etc/dkv/dkvd.toml\n"


def test_every_line_of_the_shipped_config_is_one_that_dkvd_takes(tmp_path):
    tmp_path.chmod(0o700)
    keys = tmp_path / "keys"
    said_by("env", f"XDG_CONFIG_HOME={keys}", program("dkv"), "keys")
    clients = keys / "dkv" / "clients"
    clients.mkdir(mode=0o700)
    shutil.copy(keys / "dkv" / "dkv.key", clients / "here.key")
    text = (DEBIAN / "dkvd.toml").read_text().replace("/etc/dkv", str(keys / "dkv"))
    for shown in ("127.0.0.1:9464", "tcp://0.0.0.0:9465"):
        assert shown in text
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        text = text.replace(shown, f"tcp://{address}" if "tcp" in shown else address)
    config = tmp_path / "dkvd.toml"
    config.write_text(re.sub(r"^# (?=[a-z-]+ = )", "", text, flags=re.M))
    sidecar = Sidecar(tmp_path)
    try:
        sidecar.start("--config", str(config))
    finally:
        sidecar.stop()
    assert "controllers with keys" in sidecar.log.read_text()


def test_the_units_exposure_is_below_its_bound_and_systemd_knows_every_line():
    said_by("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", UNIT)
    checked = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True).stderr
    complaints = [line for line in checked.splitlines() if "not executable" not in line and "Command 'man" not in line]
    assert complaints == []  # Programs and pages are not installed here.


def allowed_by_the_unit() -> set[str]:
    sets, current = {}, None
    for line in said_by("systemd-analyze", "syscall-filter", "--no-pager").splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), set())
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.add(line.strip())

    def calls(name: str) -> set[str]:
        return set().union(*map(calls, sets[name])) if name.startswith("@") else {name}

    allowed = calls("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.M):
        named = set().union(*map(calls, line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


@pytest.mark.parametrize("arena", ["memfd", "posix_shm"])
def test_dkvd_makes_no_system_call_that_the_unit_refuses(tmp_path, arena):
    tmp_path.chmod(0o700)
    seen = tmp_path / "calls"
    sidecar = Sidecar(tmp_path, before=("strace", "-f", "-q", "-c", "-o", str(seen)))
    sidecar.start()
    code, _ = CEngine(sidecar, DKV_ARENA=arena).end()
    sidecar.dkv("stop")
    sidecar.process.wait(20)

    assert code == 0
    used = {line.split()[-1] for line in seen.read_text().splitlines()[2:] if line[:1] == " "} - {"total", "execve"}
    assert {"mincore", "sched_setscheduler", "pidfd_open"} <= used
    assert used - allowed_by_the_unit() == set()
