"""Builds the kernels and what tries them, for one GPU or for the emulation: CMake's preset "gpu"."""
import os
import re
import shutil
import subprocess

TESTS = {"kernels_test": "the kernels' tests", "primitives_test": "tensor cores and copies against plain products"}
PROGRAMS = (*TESTS, "dkv_gpu_bench", "dkv_gpu_ipc")
CMAKE_LEAST = (3, 25)
CAPABILITY_LEAST = (8, 0)
# What is looked for → the Debian and Ubuntu package that has it.
TOOLS = {"cmake": "cmake", "g++": "g++"}
HEADERS = {"doctest/doctest.h": "doctest-dev", "hwy/highway.h": "libhwy-dev", "oneapi/tbb/info.h": "libtbb-dev"}
EMULATIONS_HEADERS = {"boost/context/fiber.hpp": "libboost-context-dev"}
BUNDLE = "or run a bundle that `make gpu-bundle` made on another machine"


class CannotBuild(Exception):
    pass


def missing_packages(headers):
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if generator() is None:
        missing.append("ninja-build")
    if "g++" in missing:
        return missing + list(headers.values())
    for header, package in headers.items():
        tried = subprocess.run(["g++", "-E", "-x", "c++", "-"], input=f"#include <{header}>\n", text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if tried.returncode != 0:
            missing.append(package)
    return missing


def generator():
    return "Ninja" if shutil.which("ninja") else "Unix Makefiles" if shutil.which("make") else None


def check_tools(headers):
    if missing := missing_packages(headers):
        raise CannotBuild(f"{' '.join(missing)} missing (apt-get install …), {BUNDLE}")
    said = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    if version is None or tuple(map(int, version.groups())) < CMAKE_LEAST:
        raise CannotBuild(f"{said.splitlines()[0] if said else 'cmake'} is older than {'.'.join(map(str, CMAKE_LEAST))}, "
                          f"{BUNDLE}")


def check_device(driver):
    capability = tuple(map(int, driver["compute_capability"].split(".")))
    if capability < CAPABILITY_LEAST:
        raise CannotBuild(f"{driver['name']} is sm_{capability[0]}{capability[1]}, the kernels are for sm_80 and newer")


def configure(root, folder, definitions):
    """What CMake says of CUDA: "13.0 of /usr/local/cuda"."""
    command = ["cmake", "--preset", "gpu", "-B", str(folder), *definitions]
    if not (folder / "CMakeCache.txt").exists():
        command += ["-G", generator()]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = re.findall(r"CUDA: (.*?)(?:\n\s*\n|\n--|\nCall Stack|\Z)", done.stdout, re.DOTALL)
    if done.returncode != 0:
        print(done.stdout)
        why = " ".join(said[-1].split()) if said else "see above"
        raise CannotBuild(f"cmake failed: {why} (--toolkit FOLDER, or CUDA_HOME)")
    return next((line.split(",")[0] for line in said if re.match(r"\d+\.\d+ of ", line)), None)


def check_toolkit(toolkit, driver):
    """A driver runs what its own major version's toolkits built, and older ones'."""
    if toolkit is not None and int(toolkit.split(".")[0]) > int(driver["driver_cuda"].split(".")[0]):
        raise CannotBuild(f"CUDA {toolkit} builds what this driver, of CUDA {driver['driver_cuda']}, does not run: "
                          "--toolkit FOLDER of an older one, or CUDA_HOME")


def build(root, driver, toolkit=None):
    """The folder of the programs. Without a driver: for the emulation."""
    check_tools({**HEADERS, **({} if driver else EMULATIONS_HEADERS)})
    folder = root / "build" / ("gpu" if driver else "gpu-emulated")
    definitions = [f"-DDKV_CUDA_TOOLKIT={toolkit or ''}"]  # Always: the cache has the last run's.
    if driver:
        check_device(driver)
        definitions.append(f"-DDKV_CUDA_ARCHITECTURES={driver['compute_capability'].replace('.', '')}")
    else:
        definitions += ["-DDKV_TEST_GPU=EMULATED", "-DDKV_CUDA=AUTO"]
    found = configure(root, folder, definitions)
    if driver:
        check_toolkit(found, driver)
    command = ["cmake", "--build", str(folder), "--target", *PROGRAMS, f"-j{os.cpu_count()}"]
    print(" ".join(command), flush=True)
    if subprocess.run(command, cwd=root).returncode != 0:
        raise CannotBuild(f"`{' '.join(command)}` failed")
    return folder / "bin"
