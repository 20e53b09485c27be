"""Two dkvd at one endpoint, and peers that speak another version of the protocol."""

from __future__ import annotations

import fcntl
import re
import struct
import subprocess
import sys

import pytest
from engines import DEVICE, LAYERS, run, status
from processes import ROOT, Sidecar, program, waited_for

sys.path.insert(0, str(ROOT / "tools" / "chaos"))

from line import Proxy  # noqa: E402
from states import DOWN, UP  # noqa: E402

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about connections, whatever the device")

OWN = re.search(r"VERSION (\d+\.\d+\.\d+)", (ROOT / "CMakeLists.txt").read_text())[1]
FRAME_HEAD = {False: 2, True: 9}  # Bytes, of a short frame and of a long one.


def second(sidecar) -> subprocess.CompletedProcess:
    return subprocess.run([program("dkvd"), "--endpoint", sidecar.endpoint], capture_output=True, text=True, timeout=60)


def test_a_second_dkvd_is_refused_and_both_versions_are_named(sidecar):
    refused = second(sidecar)

    assert refused.returncode == 1
    assert refused.stderr.endswith(
        f"a sidecar already listens at {sidecar.endpoint}: dkvd {OWN}, process {sidecar.process.pid}; this is dkvd {OWN}\n"
    )
    assert status(sidecar)["pid"] == sidecar.process.pid


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
    assert refused.stderr.endswith(f"a sidecar already listens at {sidecar.endpoint}: {named}; this is dkvd {OWN}\n")


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
