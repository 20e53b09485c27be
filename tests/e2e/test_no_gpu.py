"""The programs and libraries as they are shipped, on a machine without a GPU: they start, say so, and work on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from engines import CAPACITY, DEVICE, run, status
from processes import ROOT, Sidecar, program
from stub_driver import make_stub_driver

pytestmark = pytest.mark.skipif(
    bool(DEVICE) or Path("/dev/nvidiactl").exists(), reason="there is a GPU, or the emulation's"
)


def built_with_cuda() -> bool:
    return "cudart" in subprocess.run(["strings", program("dkvd")], capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def why() -> str:
    """Why there is no GPU, of the programs as they were built."""
    if not built_with_cuda():
        return "this was built without CUDA"
    return "no GPU: CUDA driver version is insufficient for CUDA runtime version (cudaErrorInsufficientDriver, code 35)"


@pytest.fixture
def with_cuda():
    if not built_with_cuda():
        pytest.skip("built without CUDA")


@pytest.fixture
def start(tmp_path):
    """start(*flags, **environment): a sidecar in that environment."""
    running: list[Sidecar] = []

    def started(*flags: str, **environment: str) -> Sidecar:
        tmp_path.chmod(0o700)
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            running.append(Sidecar(tmp_path))
            return running[-1].start(*flags)
        finally:
            os.environ.clear()
            os.environ.update(before)

    yield started
    for sidecar in running:
        sidecar.stop()


def refused(*flags: str, **environment: str) -> str:
    """What a dkvd that does not start says: one line."""
    done = subprocess.run([program("dkvd"), "--endpoint", "ipc:///nowhere/dkvd.sock", *flags], capture_output=True,
                          text=True, timeout=30, env={**os.environ, **environment})
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("name", ["dkvd", "dkv", "libdkv.so", "libdkv_cuda.so"])
def test_nothing_shipped_is_linked_to_cuda(name):
    folder = program("dkvd").parent
    path = folder / name if "." not in name else folder.parent / "lib" / name
    if not path.exists():
        pytest.skip(f"{name} is not built")
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed
    assert not re.search(r"NEEDED.*lib(cuda|cudart|nvidia|nvrtc)", needed)


def test_without_a_driver_the_cpu_is_used_and_said_so(start, why):
    sidecar = start()
    assert f"; {why}" in sidecar.log.read_text()
    code, report = run(sidecar, "--policy", "snapkv", "--capacity", str(CAPACITY), "--dtype", "f32")
    assert (code, report["status"], report["rows_wrong"]) == (0, "ok", 0)
    assert "cpu" in json.dumps(status(sidecar))
    doctor = sidecar.dkv("doctor", check=False)
    assert doctor.returncode in (0, 1)
    assert ("libdkv_cuda are left out" in " ".join(doctor.stdout.split())) == (not built_with_cuda())


@pytest.mark.parametrize("number, name", [(34, "cudaErrorStubLibrary"), (100, "cudaErrorNoDevice")])
def test_a_driver_without_a_gpu_is_no_gpu_either(start, with_cuda, tmp_path_factory, number, name):
    folder = make_stub_driver(tmp_path_factory.mktemp("driver"), number)
    sidecar = start(LD_LIBRARY_PATH=str(folder))
    assert re.search(rf"; no GPU: .* \({name}, code {number}\)", sidecar.log.read_text())
    assert sidecar.dkv("status").returncode == 0


def test_no_visible_device_is_no_gpu(start, with_cuda):
    sidecar = start(CUDA_VISIBLE_DEVICES="")
    assert "; no GPU: " in sidecar.log.read_text()


def test_a_gpu_that_has_to_be_there_is_missed_in_a_line(why):
    assert refused("--backend", "cuda").endswith(f"--backend cuda: {why}")
    assert refused(DKV_REQUIRE_CUDA="1").endswith(f"DKV_REQUIRE_CUDA: {why}")


def test_who_wants_the_cpu_is_not_asked_for_a_gpu(start):
    sidecar = start("--backend", "cpu", DKV_REQUIRE_CUDA="1")
    log = sidecar.log.read_text()
    assert "no GPU" not in log and "without CUDA" not in log


def test_the_python_package_imports_and_says_that_there_is_no_gpu(why):
    library = program("dkvd").parent.parent / "lib" / "libdkv.so"
    if not library.with_name("libdkv_cuda.so").exists():
        pytest.skip("libdkv_cuda.so is not built")
    done = subprocess.run(
        [sys.executable, "-c", "import dkv.cuda as c; print(c.available(), c.is_emulated(), c.why_not())"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "protocol/python"), "DKV_LIBRARY": str(library),
             "DKV_CUDA_LIBRARY": str(library.with_name("libdkv_cuda.so"))})
    assert (done.stdout, done.stderr) == (f"False False {why}\n", "")
