"""Which CUDA toolkit a build takes, and what it says when it takes none: tools/cmake/cuda.cmake with made-up toolkits."""
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ALL = (75, 80, 86, 89, 90, 100, 120)
PROJECT = f"""cmake_minimum_required(VERSION 3.25)
project(tiny LANGUAGES CXX)
include({ROOT}/tools/cmake/cuda.cmake)
message(STATUS "nvcc: ${{DKV_HAS_NVCC}}, cudart: ${{dkv_cudart}}")
"""


def toolkit(folder, version, known=ALL, library="lib64"):
    """A folder that looks like CUDA's."""
    for part in ("include", "bin", library):
        (folder / part).mkdir(parents=True, exist_ok=True)
    major, minor = version.split(".")
    (folder / "include/cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {int(major) * 1000 + int(minor) * 10}\n")
    nvcc = folder / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\n" + "".join(f"echo compute_{number}\n" for number in known))
    nvcc.chmod(0o755)
    (folder / library / "libcudart_static.a").write_bytes(b"!<arch>\n")
    return folder


@pytest.fixture
def configure(tmp_path):
    """configure(definition…): (exit status, what cmake says)."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/CMakeLists.txt").write_text(PROJECT)

    def configured(*definitions, **environment):
        path = "/usr/bin:/bin"  # No nvcc of this machine's.
        done = subprocess.run(
            ["cmake", "-S", tmp_path / "project", "-B", tmp_path / "build", *(f"-D{one}" for one in definitions)],
            capture_output=True, text=True, env={**os.environ, "PATH": path, "CUDA_HOME": "", **environment})
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return configured


has_system_toolkit = Path("/usr/local/cuda/include/cuda_runtime_api.h").exists()


@pytest.mark.parametrize("library", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_a_toolkit_is_taken_wherever_it_keeps_its_libraries(configure, tmp_path, library):
    place = toolkit(tmp_path / "cuda", "13.0", library=library)
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}")
    assert status == 0
    assert f"CUDA: 13.0 of {place}, compiled for sm_80 sm_86 sm_89 sm_90 sm_100 sm_120" in said
    assert f"nvcc: ON, cudart: {place}/{library}/libcudart_static.a" in said


def test_the_environment_names_one(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "12.9")
    assert f"CUDA: 12.9 of {place}, compiled for" in configure(CUDA_HOME=str(place))[1]


def test_architectures_that_nvcc_does_not_know_are_left_out(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "12.6", known=(75, 80, 86, 89, 90))
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}")
    assert status == 0
    assert "CUDA: sm_100 is left out, nvcc does not know it" in said
    assert "compiled for sm_80 sm_86 sm_89 sm_90 --" in said
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}", "DKV_CUDA_ARCHITECTURES=120")
    assert status != 0 and "CUDA: nvcc knows none of 120" in said


def test_an_old_toolkit_is_none(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "11.8")
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}")
    assert status == 0
    assert "CUDA: left out" in said and f"{place} is CUDA 11.8, older than 12.5" in said
    assert "nvcc: OFF" in said


def test_a_folder_that_is_no_toolkit_is_said_so(configure, tmp_path):
    status, said = configure(f"DKV_CUDA_TOOLKIT={tmp_path}")
    assert status == 0
    assert f"DKV_CUDA_TOOLKIT, {tmp_path}, has no include/cuda_runtime_api.h" in said


@pytest.mark.skipif(has_system_toolkit, reason="this machine has a toolkit")
def test_without_a_toolkit_cuda_is_left_out_unless_it_is_wanted(configure):
    status, said = configure()
    assert status == 0
    assert "CUDA: left out" in said and "no CUDA toolkit was found" in said
    status, said = configure("DKV_CUDA=ON")
    assert status != 0 and "CUDA: no CUDA toolkit was found; set DKV_CUDA_TOOLKIT" in said


def test_cuda_can_be_left_out_on_purpose(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "13.0")
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}", "DKV_CUDA=OFF")
    assert status == 0 and "CUDA: left out" in said and "DKV_CUDA is OFF" in said


def test_sanitized_builds_run_the_emulation_alone(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "13.0")
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}", "DKV_SANITIZE=thread")
    assert status == 0 and "sanitized builds run the emulation" in said and "nvcc: OFF" in said


def test_a_toolkit_without_its_compiler_is_for_the_emulation_alone(configure, tmp_path):
    place = toolkit(tmp_path / "cuda", "13.0")
    (place / "bin/nvcc").unlink()
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}")
    assert status == 0 and f"{place} has no bin/nvcc or no libcudart_static.a" in said
    status, said = configure(f"DKV_CUDA_TOOLKIT={place}", "DKV_CUDA=ON")
    assert status != 0 and "set DKV_CUDA_TOOLKIT" in said


def test_tests_on_a_real_gpu_want_a_compiler(configure, tmp_path):
    status, said = configure(f"DKV_CUDA_TOOLKIT={tmp_path}", "DKV_TEST_GPU=REAL")
    assert status != 0 and "has no include/cuda_runtime_api.h; set DKV_CUDA_TOOLKIT" in said
