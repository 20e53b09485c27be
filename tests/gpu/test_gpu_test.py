"""gpu_test.py where there is no GPU: the refusals; and everything it does, on the emulation."""
import json
import os
import subprocess
import sys
from pathlib import Path

import build
import figures
import pytest
import roofline
from processes import program
from stub_driver import make_stub_driver

HERE = Path(__file__).resolve().parent
GPU_TEST = HERE.parents[1] / "tools/gpu/gpu_test.py"

has_gpu = Path("/dev/nvidiactl").exists()
emulated = pytest.mark.skipif("DKV_HAS_EMULATION" not in os.environ, reason="built without the emulation")


def gpu_test(*arguments, **environment):
    return subprocess.run([sys.executable, GPU_TEST, *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_a_machine_without_a_driver_is_refused_in_a_line(tmp_path):
    done = gpu_test("--out", tmp_path / "report.json")
    assert done.returncode == 77
    assert done.stderr == "no GPU: there is no NVIDIA driver here (libcuda.so.1 is not to be loaded)\n"
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("status, why", [(100, "cuInit: 100, said by the stub"),
                                         (0, "the driver has no device (CUDA_VISIBLE_DEVICES?)")])
def test_a_driver_without_a_device_is_refused_with_its_own_words(tmp_path, status, why):
    done = gpu_test(LD_LIBRARY_PATH=str(make_stub_driver(tmp_path, status)))
    assert (done.returncode, done.stderr) == (77, f"no GPU: {why}\n")


def test_what_is_missing_to_build_is_named(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(build.CannotBuild, match="^cmake ninja-build g\\+\\+ doctest-dev libhwy-dev libtbb-dev missing"):
        build.build(Path("/"), "9.0")


def test_emulated_programs_must_be_given():
    done = gpu_test("--emulated")
    assert done.returncode == 2 and "--emulated wants --binaries" in done.stderr


@emulated
def test_everything_is_run_and_reported(tmp_path):
    out = tmp_path / "report.json"
    done = gpu_test("--emulated", "--binaries", program("dkv_gpu_bench").parent, "--out", out, "--tests", "*gather*")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["emulated"] and report["device"]["uuid"].startswith("GPU-") and report["copy_gb_per_s"] > 0
    assert not [step for step in report["steps"] if step["status"] == "failed"]
    steps = {step["name"]: step["status"] for step in report["steps"]}
    steps = {name: status for name, status in steps.items() if "products" not in name}
    assert steps == {
        "the kernels' tests": "passed", "two processes, one buffer": "passed", "compute-sanitizer": "skipped",
        "every op against a copy within the device": "passed", "torch, for comparison": "skipped"}
    measured = {row["op"] for row in report["ops"]}
    assert measured == set(roofline.OPS) and all(row["seconds"] > 0 for row in report["ops"])


@emulated
def test_bytes_are_counted_as_the_roofline_counts_them():
    said = subprocess.run([program("dkv_gpu_bench"), "--tiny"], capture_output=True, text=True, check=True).stdout
    rows = figures.read_bench(said)["ops"]
    assert len(rows) == 2 * len(roofline.OPS)
    shape = roofline.Shape("tiny", q_heads=4, kv_heads=2, head_dim=64)
    for row in rows:
        work = roofline.work(row["op"], shape, row["dtype"], row["tokens"], layers=1)
        assert row["bytes"] == work.bytes, row


@emulated
def test_two_processes_share_both_kinds_of_memory():
    done = subprocess.run([program("dkv_gpu_ipc")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cuda_ipc\tok\ncuda_vmm_fd\tok\n", "")


@emulated
def test_a_failure_is_reported_and_the_rest_is_run(tmp_path):
    """A kernels_test that fails, in a folder with the other programs."""
    for name in ("dkv_gpu_bench", "dkv_gpu_ipc"):
        (tmp_path / name).symlink_to(program(name))
    (tmp_path / "kernels_test").write_text("#!/bin/sh\necho gather is wrong\nexit 3\n")
    (tmp_path / "kernels_test").chmod(0o755)
    done = gpu_test("--emulated", "--binaries", tmp_path, "--out", tmp_path / "report.json")
    assert done.returncode == 1
    assert "failed: the kernels' tests" in done.stdout and "gather is wrong" in done.stderr
    steps = {step["name"]: step for step in json.loads((tmp_path / "report.json").read_text())["steps"]}
    assert steps["the kernels' tests"]["exit_status"] == 3
    assert steps["two processes, one buffer"]["status"] == "passed"


def test_figures_of_torch_are_joined():
    report = figures.read_bench("device\tH100\tGPU-1\t9.0\t85899345920\t132\tCUDA 13.0\ncopy\t2e12\n"
                                "op\tgather\ttiny\tf16\t256\t1e-06\t1000000\n")
    figures.compare(report["ops"], figures.read_torch("torch\t2.13\nop\tgather\ttiny\tf16\t256\t5e-06\n"))
    (row,) = report["ops"]
    assert row["of_copy"] == pytest.approx(0.5) and row["times_torch"] == pytest.approx(5)
    with pytest.raises(ValueError, match="not a line of dkv_gpu_bench"):
        figures.read_bench("Segmentation fault\n")


def test_torchs_side_runs():
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, GPU_TEST.parent / "torch_baseline.py", "--device", "cpu", "--tiny"],
                          capture_output=True, text=True, check=True)
    ops = {op for op, *_ in figures.read_torch(done.stdout)}
    assert ops == {"score", "flash", "key_norm", "key_diff", "pool", "select", "sum", "gather"}
