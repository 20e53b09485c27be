"""The wheel in an environment of its own: `make test-wheel`. DKV_WHEEL names it.

The environment's Python sees what pip installed into .venv, cffi and the engines, and neither its dkv nor this tree.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sysconfig
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEEL = Path(os.environ["DKV_WHEEL"]).resolve()
MIB_MAX = 15  # Of the wheel without CUDA.
VERSION = re.search(r"project\(dkv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]


class Installed:
    """An environment with the wheel, and nothing of this process's variables but HOME."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder, with_pip=True)
        self.environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "DKV_ENDPOINT": f"ipc://{folder}/dkvd.sock"}
        self.environment |= {name: os.environ[name] for name in ("HOME", "DKV_CACHE") if name in os.environ}
        # A path alone: the .pth files there do not count.
        next(folder.glob("lib/python3*/site-packages/")).joinpath("engines.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.run("pip", "install", "-q", "--no-index", "--disable-pip-version-check", str(WHEEL))

    def run(self, program: str, *arguments: str, codes=(0,)) -> str:
        words = [self.folder / "bin" / program, *arguments]
        done = subprocess.run(words, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=600)
        assert done.returncode in codes, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def package(self) -> Path:
        return next(self.folder.glob("lib/python3*/site-packages/dkv"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("environment"))


def test_the_wheel_is_for_every_python_3_of_this_platform_and_small():
    assert re.fullmatch(rf"dkv(_cu\d+)?-{re.escape(VERSION)}-py3-none-manylinux_\w+\.whl", WHEEL.name)
    if "_cu" not in WHEEL.name:
        assert WHEEL.stat().st_size < MIB_MAX * 2**20


def test_programs_and_package_say_the_same_version(installed):
    assert installed.run("dkv", "--version") == f"dkv {VERSION}\n"
    assert installed.run("dkvd", "--version") == f"dkvd {VERSION}\n"
    assert installed.run("python", "-c", "import dkv; print(dkv.__version__)") == f"{VERSION}\n"


def test_libraries_come_with_the_wheel(installed):
    for name in ("bin/dkv", "bin/dkvd", "libdkv.so.1", "libdkv_llama_preload.so"):
        linked = subprocess.run(["ldd", installed.package / name], capture_output=True, text=True, check=True).stdout
        assert "not found" not in linked
        found = dict(re.findall(r"(lib\w+)\S* => (\S+)", linked))
        assert Path(found["libzmq"]).resolve().is_relative_to(installed.package.parent), linked


def test_a_server_is_started_with_the_wheels_own_library(installed):
    said = installed.run("dkv", "llama", "run", "/bin/sh", "-c", "echo $LD_PRELOAD")
    assert said == f"{installed.package / 'libdkv_llama_preload.so'}\n"


def test_doctor_looks_at_the_machine(installed):
    assert "memfd" in installed.run("dkv", "doctor", codes=(0, 1))  # 1: it found something to warn of.


def test_completions_and_man_pages_are_where_shells_and_man_look(installed):
    share = installed.folder / "share"
    files = {"bash": "bash-completion/completions/dkv", "zsh": "zsh/site-functions/_dkv", "fish": "fish/vendor_completions.d/dkv.fish"}
    for shell, file in files.items():
        here = installed.run("dkv", "completion", shell).replace(installed.environment["DKV_ENDPOINT"], "ipc://PATH")
        assert (share / file).read_text() == here
    for page in ("man1/dkv.1", "man8/dkvd.8"):
        assert f'"dkv {VERSION}"' in (share / "man" / page).read_text().partition("\n")[0]


def test_commands_written_in_python_ask_the_environments_own(installed):
    words = [installed.folder / "bin" / "dkv", "eval", "--help"]
    done = subprocess.run(words, env=installed.environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{installed.folder}/bin/python" in done.stderr and "has no dkv_lab: pip install 'dkv[lab]'" in done.stderr


def test_readmes_first_example_runs(installed):
    example = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    assert "dkv.hf.Cache" in example
    where = "import dkv; print(dkv.__file__)\n"
    sidecar = subprocess.Popen([installed.folder / "bin" / "dkvd"], env=installed.environment, stderr=subprocess.PIPE)
    try:
        while not (installed.folder / "dkvd.sock").exists():
            assert sidecar.poll() is None, sidecar.stderr.read().decode()
            time.sleep(0.05)
        said = installed.run("python", "-c", where + example)
    finally:
        sidecar.send_signal(signal.SIGTERM)
        sidecar.communicate(timeout=60)
    assert said.startswith(f"{installed.package}/"), said
    assert re.search(r"^auto kept 512 of [\d,]+ tokens", said, re.M), said
    assert sidecar.returncode == 0

