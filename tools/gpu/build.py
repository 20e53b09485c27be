"""Builds the kernels and what tries them for one GPU: CMake's preset "gpu"."""
import os
import shutil
import subprocess

TESTS = {"kernels_test": "the kernels' tests", "primitives_test": "tensor cores and copies against plain products"}
PROGRAMS = (*TESTS, "dkv_gpu_bench", "dkv_gpu_ipc")
# What is looked for → the Debian and Ubuntu package that has it.
TOOLS = {"cmake": "cmake", "ninja": "ninja-build", "g++": "g++"}
HEADERS = {"doctest/doctest.h": "doctest-dev", "hwy/highway.h": "libhwy-dev", "oneapi/tbb/info.h": "libtbb-dev"}


class CannotBuild(Exception):
    pass


def missing_packages():
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if "g++" in missing:
        return missing + list(HEADERS.values())
    for header, package in HEADERS.items():
        tried = subprocess.run(["g++", "-E", "-x", "c++", "-"], input=f"#include <{header}>\n", text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if tried.returncode != 0:
            missing.append(package)
    return missing


def build(root, compute_capability):
    """The folder of the programs."""
    if missing := missing_packages():
        raise CannotBuild(f"{' '.join(missing)} missing (apt-get install …), or run a bundle that `make gpu-bundle` "
                          "made on another machine")
    architecture = compute_capability.replace(".", "")
    folder = root / "build" / "gpu"
    for command in (["cmake", "--preset", "gpu", f"-DDKV_CUDA_ARCHITECTURES={architecture}", "--log-level=WARNING"],
                    ["cmake", "--build", str(folder), "--target", *PROGRAMS, f"-j{os.cpu_count()}"]):
        print(" ".join(command), flush=True)
        done = subprocess.run(command, cwd=root)
        if done.returncode != 0:
            raise CannotBuild(f"`{' '.join(command)}` failed")
    return folder / "bin"
