"""gpu_test.py where there is no GPU: the refusals; and everything it does, on the emulation."""
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import build
import figures
import pytest
import roofline
from processes import program
from steps import Steps
from stub_driver import make_stub_driver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GPU_TEST = ROOT / "tools/gpu/gpu_test.py"
PROGRAMS = ("kernels_test", "primitives_test", "dkv_gpu_bench", "dkv_gpu_ipc")
DRIVER = {"name": "a GPU", "compute_capability": "9.0", "driver_cuda": "12.8"}

has_gpu = Path("/dev/nvidiactl").exists()
emulated = pytest.mark.skipif("DKV_HAS_EMULATION" not in os.environ, reason="built without the emulation")


def gpu_test(*arguments, script=GPU_TEST, **environment):
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment})


def stand_in(path, text):
    """A program that is a few lines of shell."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


# --- where nothing can be run ---

@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_a_machine_without_a_driver_is_refused_in_a_line(tmp_path):
    done = gpu_test("--out", tmp_path / "report.json")
    assert done.returncode == 77
    assert done.stderr == "no GPU: there is no NVIDIA driver here (libcuda.so.1 is not to be loaded)\n"
    assert not (tmp_path / "report.json").exists()
    assert gpu_test(DKV_REQUIRE_CUDA="1").returncode == 1


@pytest.mark.parametrize("status, why", [(100, "cuInit: 100, said by the stub"),
                                         (0, "the driver has no device (CUDA_VISIBLE_DEVICES?)")])
def test_a_driver_without_a_device_is_refused_with_its_own_words(tmp_path, status, why):
    done = gpu_test(LD_LIBRARY_PATH=str(make_stub_driver(tmp_path, status)))
    assert (done.returncode, done.stderr) == (77, f"no GPU: {why}\n")


def test_a_driver_that_does_not_work_is_no_missing_gpu(tmp_path):
    done = gpu_test(LD_LIBRARY_PATH=str(make_stub_driver(tmp_path, 999)))
    assert (done.returncode, done.stderr) == (1, "gpu_test: the driver: cuInit: 999, said by the stub\n")


def test_what_is_missing_to_build_is_named(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(build.CannotBuild, match="^cmake g\\+\\+ ninja-build doctest-dev libhwy-dev libtbb-dev missing"):
        build.build(Path("/"), DRIVER)


def test_an_old_cmake_is_named(tmp_path, monkeypatch):
    stand_in(tmp_path / "cmake", "echo cmake version 3.22.1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(build.CannotBuild, match="^cmake version 3.22.1 is older than 3.25, or run a bundle"):
        build.build(Path("/"), DRIVER)


def test_a_device_older_than_the_kernels_is_refused(tmp_path):
    with pytest.raises(build.CannotBuild, match="^a GPU is sm_75, the kernels are for sm_80 and newer$"):
        build.build(tmp_path, {**DRIVER, "compute_capability": "7.5"})


def test_a_toolkit_that_the_driver_is_too_old_for_is_refused():
    build.check_toolkit("12.9 of /usr/local/cuda", DRIVER)  # Of one major version: it runs.
    with pytest.raises(build.CannotBuild, match="^CUDA 13.0 of /cuda builds what this driver, of CUDA 12.8, does not run"):
        build.check_toolkit("13.0 of /cuda", DRIVER)


def test_a_machine_without_a_toolkit_is_refused_in_a_line(tmp_path):
    """CMake itself is run, on the repository."""
    with pytest.raises(build.CannotBuild) as refused:
        build.configure(ROOT, tmp_path / "build", [f"-DDKV_CUDA_TOOLKIT={tmp_path}"])
    assert str(refused.value) == (f"cmake failed: DKV_CUDA_TOOLKIT, {tmp_path}, has no include/cuda_runtime_api.h; set "
                                  "DKV_CUDA_TOOLKIT (--toolkit FOLDER, or CUDA_HOME)")


# --- on the emulation ---

def bundle(folder):
    """What bundle.sh makes of the emulated programs, unpacked: the folder."""
    tar = folder / "bundle.tar"
    subprocess.run([ROOT / "tools/gpu/bundle.sh", "--of", program("dkv_gpu_bench").parent, tar], check=True,
                   stdout=subprocess.DEVNULL)
    with tarfile.open(tar) as file:
        assert {member.uid for member in file} == {0}
        file.extractall(folder, filter="data")
    return folder / "gpu-bundle"


def check_libraries(unpacked):
    """All of them the bundle's own, but for C's and C++'s."""
    ours = set()
    for name in PROGRAMS:
        said = subprocess.run(["ldd", unpacked / "bin" / name], capture_output=True, text=True, check=True).stdout
        found = [Path(os.path.realpath(line.split(" => ")[1].split()[0])) for line in said.splitlines() if " => " in line]
        ours |= {path for path in found if path.parent == unpacked / "lib"}
        theirs = {path.name.split(".")[0] for path in set(found) - ours}
        assert theirs <= {"libc", "libm", "libstdc++", "libgcc_s"}, name
    assert ours == set((unpacked / "lib").iterdir()) and len(ours) >= 2


@emulated
def test_a_bundle_runs_and_reports_everything(tmp_path):
    unpacked = bundle(tmp_path)
    check_libraries(unpacked)
    assert str(ROOT).encode() not in b"".join(path.read_bytes() for path in unpacked.glob("*.*"))
    stand_in(tmp_path / "nvidia-smi", "case \"$*\" in *-lms*)\n"
             "printf '1980, 2619, 40, 300.5\\n1755, 2619, 50, 690.0\\n'; exec sleep 60;; esac\n"
             "echo '580.65, P0, 1980, 2619, 700, 35, 0, 4, Enabled, Default, Enabled, Disabled'\n")
    out = tmp_path / "report.json"
    done = gpu_test("--emulated", "--out", out, "--tests", "*gather*", script=unpacked / "gpu_test.py",
                    PATH=f"{tmp_path}:/usr/bin:/bin", PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("THE EMULATION on this machine's CPU, not a GPU: no time") and done.stderr == ""
    assert done.stdout.splitlines()[-1] == done.stdout.splitlines()[0]
    check_report(json.loads(out.read_text()))


def check_report(report):
    """Every field that a report of a GPU has."""
    assert report["emulated"] and report["note"].startswith("THE EMULATION") and report["finished"]
    assert report["format"] == 1 and report["commit"] and report["machine"] and report["when"] and not report["driver"]
    assert report["device"]["uuid"].startswith("GPU-") and "emulated" in report["device"]["built_with"]
    assert report["gpu_state"]["clocks.max.sm"] == "1980" and report["gpu_state"]["mig.mode.current"] == "Disabled"
    assert report["clocks"] == {"samples": 2, "clocks.sm": [1755, 1867.5, 1980], "clocks.mem": [2619, 2619, 2619],
                                "temperature.gpu": [40, 45, 50], "power.draw": [300.5, 495.25, 690]}
    assert {step["name"]: step["status"] for step in report["steps"]} == {
        "the programs see the GPU": "passed", "the kernels' tests": "passed",
        "tensor cores and copies against plain products": "not run", "two processes, one buffer": "passed",
        "every op beside a copy within the device": "passed", "torch, for comparison (on the CPU)": "passed",
        "compute-sanitizer": "not run"}
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["the kernels' tests"]["tests"]["passed"] > 0
    assert steps["two processes, one buffer"]["memory"] == {"cuda_ipc": "ok", "cuda_vmm_fd": "ok", "cuda_pool": "ok"}
    assert steps["tensor cores and copies against plain products"]["why"] == "no test's name matches"
    assert report["failed"] == [] and len(report["not_run"]) == 2
    check_ops(report)


def check_ops(report):
    assert len(report["copies_gb_per_s"]) == 2 and report["torch"]["device"] == "the CPU"
    assert report["torch"]["left_out"] == []
    assert sorted(row["op"] for row in report["ops"]) == sorted(2 * roofline.OPS)
    for row in report["ops"]:
        assert row["runs"] == 2 and 0 < row["seconds_least"] <= row["seconds"] <= row["seconds_most"]
        work = roofline.work(row["op"], roofline.MODELS["tiny"], row["dtype"], row["tokens"])
        assert row["bytes"] == work.bytes, row
        assert row["gb_per_s"] > 0 and row["of_copy"] > 0 and row["least_seconds"] > 0 and row["least_by"]
        assert (row["of_flash_prefill"] is None) == (row["dtype"] == "f32")  # There is no such kernel.
        assert row["times_torch"] > 0


@emulated
def test_every_failure_is_reported_and_the_rest_is_run(tmp_path):
    """Real programs that fail: a test, a benchmark that dies half way, a second process that ends, a sanitizer."""
    stand_in(tmp_path / "kernels_test", "echo gather is wrong\nexit 3\n")
    (tmp_path / "primitives_test").symlink_to(program("primitives_test"))
    bench = program("dkv_gpu_bench")
    stand_in(tmp_path / "dkv_gpu_bench", f'case "$*" in --device) exec {bench} --device;; esac\n'
             f"{bench} --tiny --filter=sum\nprintf 'op\\ttall'\nkill -SEGV $$\n")
    stand_in(tmp_path / "dkv_gpu_ipc", f"exec {program('dkv_gpu_ipc')} --peer=/bin/false\n")
    sanitizer = stand_in(tmp_path / "sanitizer", "case $2 in racecheck) echo ERROR SUMMARY: 1 error; exit $4;; esac\n"
                         "echo ran $*\n")
    out = tmp_path / "report.json"
    done = gpu_test("--emulated", "--binaries", tmp_path, "--out", out, "--quick", "--sanitizer", sanitizer, "--tests",
                    "*powers of two*", "--python", stand_in(tmp_path / "python", "echo no module named torch >&2\nexit 1\n"))
    assert done.returncode == 1
    report = json.loads(out.read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert {name: step.get("why") for name, step in steps.items()} == {
        "the programs see the GPU": None, "the kernels' tests": "exit status 3",
        "tensor cores and copies against plain products": None, "two processes, one buffer": "exit status 1",
        "every op beside a copy within the device": "killed by signal 11, Segmentation fault",
        "torch, for comparison (on the CPU)": "exit status 1",
        "memcheck: every op": None, "racecheck: every op": "exit status 86", "synccheck: every op": None}
    assert report["failed"] == [name for name, step in steps.items() if "why" in step]
    assert f"4 passed, 5 failed ({'; '.join(report['failed'])}), 0 not run" in done.stdout
    assert "gather is wrong" in steps["the kernels' tests"]["output"] and "gather is wrong" in done.stderr
    assert steps["tensor cores and copies against plain products"]["tests"]["passed"] > 0
    ipc = steps["two processes, one buffer"]["output"]
    assert ipc == "dkv_gpu_ipc: cuda_ipc: the second process ended without a word\n" or "sendmsg: Broken pipe" in ipc
    assert [row["op"] for row in report["ops"]] == ["sum", "sum"]  # What was measured before.
    assert report["clocks"]["why"].startswith("nvidia-smi does not run") or has_gpu


@emulated
def test_programs_of_the_other_kind_are_not_taken(tmp_path):
    """Figures of the emulation must never be taken for a GPU's, nor the reverse."""
    for name in PROGRAMS:
        stand_in(tmp_path / name, "printf 'device\\tH100\\tGPU-1\\t9.0\\t8\\t132\\t0\\t0\\t0\\tCUDA 13.0\\n'\n")
    done = gpu_test("--emulated", "--binaries", tmp_path, "--out", tmp_path / "report.json", "--python", "/bin/true")
    assert done.returncode == 1
    steps = {step["name"]: step["why"] for step in json.loads((tmp_path / "report.json").read_text())["steps"]}
    assert steps["the programs see the GPU"] == f"{tmp_path} was built with CUDA 13.0: it runs on a GPU"
    assert steps["the kernels' tests"] == "it printed no result of its tests"
    assert steps["every op beside a copy within the device"] == "it ended before its last line"
    assert steps["torch, for comparison (on the CPU)"] == "not what torch_baseline.py prints"


# --- its parts ---

def test_every_shape_that_is_measured_has_its_least_time():
    shapes = re.findall(r'\{"([^"]+)", (\d+), (\d+), (\d+), (\d+), ', (ROOT / "tools/gpu/bench.cc").read_text())
    assert {name for name, *_ in shapes} == set(roofline.MODELS)
    for name, layers, q_heads, kv_heads, head_dim in shapes:
        assert roofline.MODELS[name] == roofline.Shape(name, int(q_heads), int(kv_heads), int(head_dim), int(layers))


def test_figures_stand_side_by_side():
    report = figures.read_bench("device\tH100\tGPU-1\t9.0\t85899345920\t132\t1.98e9\t3.352e12\t52428800\tCUDA 13.0\n"
                                "copy\t1e12\nop\tgather\tllama-3-8b\tbf16\t4096\t2e-06\t1e-06\t3e-06\t20\t4194304\n"
                                "copy\t2e12\n")
    report["torch"] = figures.read_torch("torch\t2.13\tH100\nop\tgather\tllama-3-8b\tbf16\t4096\t1e-05\n"
                                         "op\tflash_prefill\tllama-3-8b\tbf16\t4096\t4e-04\nleft out\tscore\tno memory\n")
    figures.compare(report)
    (row,) = report["ops"]
    assert (row["gb_per_s"], row["of_copy"]) == (pytest.approx(2097.152), pytest.approx(1.048576))
    assert (row["times_torch"], row["of_flash_prefill"]) == (pytest.approx(5), pytest.approx(0.005))
    assert (row["least_seconds"], row["least_by"]) == (pytest.approx(4194304 / 3.352e12), "memory")
    assert report["torch"] == {"version": "2.13", "device": "H100", "left_out": ["score no memory"]}
    with pytest.raises(ValueError, match="not a line of dkv_gpu_bench: Segmentation fault"):
        figures.read_bench("Segmentation fault\n")


def test_torch_that_sees_no_gpu_is_said_so(tmp_path):
    steps = Steps()
    script = stand_in(tmp_path / "torch", "printf 'not here\\ttorch 2.13 sees no GPU\\n'\n")
    assert steps.run("torch", [script], 20, lambda output, step: figures.read_torch(output)) is None
    assert (steps.all[0]["status"], steps.all[0]["why"]) == ("not run", "torch 2.13 sees no GPU")
