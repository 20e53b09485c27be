"""Containers for real: `make test-image`. DKV_DEBIAN_ROOT is a tar of a bare Debian, DKV_DEB the package to install in it.

Images come from no registry. The image's first stage, which compiles for minutes, is replaced with the package that
was compiled already, unless DKV_IMAGE_WHOLE=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from processes import ROOT, program  # noqa: E402

BASE, ENGINE = "localhost/dkv-test-base", "localhost/dkv-test-engine"


class Podman:
    def __init__(self, folder: Path):
        # crun, podman's default, refuses hybrid control groups; limits above this user's are refused too.
        runtime = 'runtime = "runc"' if shutil.which("runc") else ""
        limits = 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]'
        (folder / "containers.conf").write_text(f"[containers]\n{limits}\n[engine]\n{runtime}\n")
        tools = Path(sys.executable).parent  # podman-compose's.
        self.environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self.environment["PATH"] = f"{tools}:{self.environment['PATH']}"

    def run(self, *words, codes=(0,), **environment: str) -> str:
        words = [str(word) for word in words]
        done = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1800, env={**self.environment, **environment}
        )
        assert codes is None or done.returncode in codes, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def __call__(self, *words, **how) -> str:
        return self.run("podman", *words, **how)


@pytest.fixture(scope="session")
def podman(tmp_path_factory) -> Podman:
    return Podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def image(podman, tmp_path_factory) -> str:
    """dkv's image, built by its Containerfile."""
    podman("import", "-q", os.environ["DKV_DEBIAN_ROOT"], BASE)
    options = ["--isolation", "chroot"]
    if os.environ.get("DKV_IMAGE_WHOLE") != "1":
        built = tmp_path_factory.mktemp("built")
        (built / "src" / "dist").mkdir(parents=True)
        shutil.copy(os.environ["DKV_DEB"], built / "src" / "dist")
        options += ["--build-context", f"build={built}"]
    said = podman.run(ROOT / "tools/package/container/image.sh", *options, DEBIAN=BASE)
    return said.split("Successfully tagged ")[1].split()[0]


@pytest.fixture(scope="session")
def engine(podman, image, tmp_path_factory) -> str:
    """An image of the engine in C, made from dkv's because both need libdkv."""
    folder = tmp_path_factory.mktemp("engine")
    shutil.copy(program("dkv_c_engine"), folder)
    geometry = '"--layers", "6", "--q-heads", "6", "--kv-heads", "2", "--head-dim", "64", "--tokens", "600"'
    lines = f"FROM {image}\nCOPY dkv_c_engine /usr/bin/\n"
    lines += f'ENTRYPOINT ["dkv_c_engine", "--endpoint", "ipc:///run/dkv/own/dkvd.sock", {geometry}]\nCMD []\n'
    (folder / "Containerfile").write_text(lines)
    podman("build", "-q", "--isolation", "chroot", "-t", ENGINE, folder)
    return ENGINE
