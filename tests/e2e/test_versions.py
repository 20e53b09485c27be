"""Two versions of dkvd and libdkv: at one endpoint, with each other's engines, and through an upgrade. And two protocols.

The later version is this build's own code with another number (tests/e2e/later), or the build in DKV_LATER_DIR.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from engines import CAPACITY, DEVICE, LAYERS, CEngine, run, status
from processes import ROOT, Sidecar, program, waited_for

sys.path.insert(0, str(ROOT / "tools" / "chaos"))

from line import Proxy  # noqa: E402
from states import DOWN, UP  # noqa: E402

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about connections, whatever the device")

FRAME_HEAD = {False: 2, True: 9}  # Bytes, of a short frame and of a long one.
BOTH_WAYS = pytest.mark.parametrize("old, new", [("own", "later"), ("later", "own")], ids=["upgrade", "downgrade"])


def folder(which: str) -> Path:
    own = program("dkvd").parents[1]
    return own if which == "own" else Path(os.environ.get("DKV_LATER_DIR", own / "later"))


def dkvd(which: str) -> Path:
    return folder(which) / "bin" / "dkvd"


def version(which: str) -> str:
    shown = subprocess.run([dkvd(which), "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    return re.fullmatch(r"dkvd (\d+\.\d+\.\d+)\n", shown)[1]


def library(which: str) -> dict[str, str]:
    """The environment of an engine that loads that libdkv."""
    return {"LD_LIBRARY_PATH": str(folder(which) / "lib")}


def second(sidecar, which: str = "own") -> subprocess.CompletedProcess:
    return subprocess.run([dkvd(which), "--endpoint", sidecar.endpoint], capture_output=True, text=True, timeout=60)


@BOTH_WAYS
def test_a_second_dkvd_is_refused_and_both_versions_are_named(tmp_path, old, new):
    tmp_path.chmod(0o700)
    sidecar = Sidecar(tmp_path, dkvd=dkvd(old)).start()

    refused = second(sidecar, new)

    assert version(old) != version(new)
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        f"a sidecar already listens at {sidecar.endpoint}: dkvd {version(old)}, process {sidecar.process.pid}; "
        f"this is dkvd {version(new)}\n"
    )
    assert status(sidecar)["pid"] == sidecar.process.pid
    sidecar.stop()


@pytest.mark.parametrize(
    "text, named",
    [("dkvd 0.0.9, process 77", "dkvd 0.0.9, process 77"), ("", "of an unknown version")],
    ids=["it says", "it does not"],
)
def test_the_version_that_is_named_is_the_one_of_the_dkvd_that_listens(tmp_path, text, named):
    tmp_path.chmod(0o700)
    sidecar = Sidecar(tmp_path)
    with open(tmp_path / "dkvd.sock.lock", "w") as lock:  # As a dkvd of that version holds it.
        lock.write(text)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)

        refused = second(sidecar)

    assert refused.returncode == 1
    assert refused.stderr.endswith(
        f"a sidecar already listens at {sidecar.endpoint}: {named}; this is dkvd {version('own')}\n"
    )


def test_engines_and_dkvds_of_both_versions_compress_the_same_with_each_other(tmp_path):
    tmp_path.chmod(0o700)
    kept = {}
    for of_sidecar in ("own", "later"):
        sidecar = Sidecar(tmp_path, dkvd=dkvd(of_sidecar)).start()
        for of_engine in ("own", "later"):
            code, outcome = run(sidecar, "--capacity", str(CAPACITY), **library(of_engine))
            assert (code, outcome["libdkv"], outcome["rows_wrong"]) == (0, version(of_engine), 0)
            assert outcome["committed"]
            kept[of_sidecar, of_engine] = outcome["positions"]
        assert status(sidecar)["version"] == version(of_sidecar)
        said = "engines can attach" + ("" if of_sidecar == "own" else f"; this dkv is {version('own')}")
        assert re.search(rf"^\s*{re.escape(said)}$", sidecar.dkv("doctor", check=False).stdout, re.M)
        sidecar.stop()

    assert len(kept) == 4
    assert len(set(kept.values())) == 1


@BOTH_WAYS
def test_an_upgrade_ends_the_open_prompt_and_serves_the_same_engine_after_it(tmp_path, old, new):
    """SIGTERM, then the other version at the same endpoint: the prompt between the two stays whole."""
    tmp_path.chmod(0o700)
    sidecar = Sidecar(tmp_path, dkvd=dkvd(old)).start("--drain-ms", "60000")
    flags = ("--capacity", str(CAPACITY), "--sessions", "3", "--pause-at-layer", "2", "--timeout-ms", "20000")
    engine = CEngine(sidecar, *flags, **library(old))
    engine.line()
    pid = sidecar.process.pid
    sidecar.process.send_signal(signal.SIGTERM)
    waited_for(lambda: status(sidecar)["draining"], "the sidecar to drain")
    early = second(sidecar, new)
    engine.go_on()
    first = engine.line()
    engine.line()  # The second session's pause.
    assert sidecar.process.wait(20) == 0
    sidecar.dkvd = dkvd(new)
    sidecar.start()
    engine.go_on()
    between = engine.line()
    engine.line()
    engine.go_on()
    code, lines = engine.end()
    restarted = run(sidecar, "--capacity", str(CAPACITY), **library(new))[1]  # Engines follow when they restart anyway.
    running = status(sidecar)["version"]
    sidecar.stop()

    assert early.returncode == 1
    assert early.stderr.endswith(f": dkvd {version(old)}, process {pid}; this is dkvd {version(new)}\n")
    assert first["committed"]
    assert not between["committed"]
    assert between["forms"] == ["full"] * LAYERS
    assert code == 3 and lines[-1]["committed"]  # 3: one of its prompts stayed whole.
    assert [each["rows_wrong"] for each in (first, between, lines[-1], restarted)] == [0] * 4
    assert (lines[-1]["libdkv"], restarted["libdkv"], running) == (version(old), version(new), version(new))
    assert restarted["committed"]


class OtherVersion:
    """Every message of one direction says that it is of protocol 9."""

    def __init__(self, way: str):
        self.way = way

    def look(self, line, message) -> str | bytes:
        if message.way != self.way:
            return "pass"
        frames = bytearray(message.frames)
        body = FRAME_HEAD[bool(frames[0] & 2)]
        root = body + struct.unpack_from("<I", frames, body)[0]
        table = root - struct.unpack_from("<i", frames, root)[0]
        struct.pack_into("<H", frames, root + struct.unpack_from("<H", frames, table + 4)[0], 9)
        return bytes(frames)


@pytest.mark.parametrize("way", [UP, DOWN])
def test_an_engine_and_a_dkvd_of_different_protocols_refuse_each_other_and_name_both(sidecar, tmp_path, way):
    proxy = Proxy(str(tmp_path / "proxy"), OtherVersion(way))
    shim = program("dkvd").parents[1] / "lib" / "libdkv_chaos_through.so"
    lead = {"LD_PRELOAD": str(shim), "DKV_CHAOS_SIDECAR": sidecar.endpoint.removeprefix("ipc://")}

    code, outcome = run(sidecar, "--timeout-ms", "20000", **lead, DKV_CHAOS_PROXY=proxy.path)
    proxy.close()

    assert (code, outcome["status"]) == (3, "version_mismatch")
    assert outcome["error"].endswith("message speaks protocol version 9, this side speaks 1")
    assert outcome["forms"] == ["full"] * LAYERS and outcome["rows_wrong"] == 0
    waited_for(lambda: status(sidecar)["instances_attached"] == 0, "the engine to be gone")
