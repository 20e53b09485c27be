"""The image and the compose file, run by a real podman: an engine in one container, dkvd in the other."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
import yaml
from processes import ROOT, waited_for

PACKAGE = ROOT / "tools" / "package"
COMPOSE = PACKAGE / "container" / "compose.yaml"
MIB_MAX = 350  # Of the whole image; the bare Debian below it has about 190.


@pytest.fixture
def composed(podman, image, engine):
    """podman-compose with these containers' environment; what it started is removed."""

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def compose(*words, **how) -> str:
        before = ["podman-compose", "--in-pod=false", "-p", "dkv-test", "-f", COMPOSE]
        return podman.run(*before, *words, ENGINE_IMAGE=engine, DKV_IMAGE=image, DKV_METRICS_PORT=str(port), **how)

    compose("down", "-v", codes=None)
    compose.port = port
    yield compose
    compose("down", "-v", codes=None)


def serves(podman, container: str) -> bool:
    return "running: dkvd" in podman("exec", container, "dkv", "status", codes=None)


def compressed(said: str) -> bool:
    done = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return done["committed"] and done["rows_wrong"] == 0 and done["bytes_kept"] < done["bytes_full"]


def test_an_engine_is_compressed_by_the_sidecar_of_the_compose_file(podman, composed):
    composed("up", "-d", "dkvd")
    waited_for(lambda: serves(podman, "dkvd"), "dkvd", 60)

    assert compressed(composed("run", "--rm", "--no-deps", "engine"))


def test_named_shared_memory_is_reached_too_where_the_ipc_namespace_is_one(podman, composed, engine):
    composed("up", "-d", "dkvd")
    waited_for(lambda: serves(podman, "dkvd"), "dkvd", 60)

    # What the compose file says, to podman itself: podman-compose leaves `ipc` out.
    shares = yaml.safe_load(COMPOSE.read_text())["services"]["engine"]
    flags = [f"--{name}={shares[name]}" for name in ("pid", "ipc")]
    words = [*flags, "--cap-drop=ALL", "--user=1000:1000", "--volumes-from=dkvd", "-e", "DKV_ARENA=posix_shm", engine]
    assert compressed(podman("run", "--rm", *words))


def test_the_sidecars_container_may_do_nothing_that_it_does_not_need(podman, composed):
    composed("up", "-d", "dkvd")
    waited_for(lambda: serves(podman, "dkvd"), "dkvd", 60)

    lines = podman("exec", "dkvd", "cat", "/proc/1/status").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert status["Name"] == ["dkvd"] and status["Uid"] == ["1000"] * 4
    assert status["CapEff"] == status["CapBnd"] == ["0000000000000000"] and status["NoNewPrivs"] == ["1"]
    assert podman("exec", "dkvd", "find", "/etc", "/usr", "-writable", "-not", "-type", "l") == ""


def test_the_probes_of_the_manifests_are_answered(podman, composed):
    composed("up", "-d", "dkvd")
    waited_for(lambda: serves(podman, "dkvd"), "dkvd", 60)

    for path in ("healthz", "readyz", "metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{composed.port}/{path}", timeout=10) as answer:
            assert answer.status == 200


def test_the_image_has_the_package_and_nothing_to_compile_with(podman, image):
    assert int(podman("image", "inspect", "-f", "{{.Size}}", image)) < MIB_MAX * 2**20
    left = podman("run", "--rm", "--entrypoint", "sh", image, "-c", "ls /tmp /src /var/lib/apt/lists /usr/bin/g++ 2>/dev/null; true")
    assert "dkv_" not in left and "g++" not in left
    shown = podman("run", "--rm", "--entrypoint", "dkvd", image, "--version")
    assert shown == f"dkvd {image.rpartition(':')[2]}\n"


def test_the_pod_with_a_sidecar_of_its_own_compresses(podman, image, engine, tmp_path):
    pod = yaml.safe_load((PACKAGE / "kubernetes" / "pod.yaml").read_text())
    for container in pod["spec"]["containers"]:
        container.pop("readinessProbe", None), container.pop("livenessProbe", None)  # Of the kubelet.
        container.pop("resources")
        if container["name"] == "engine":
            container.update(image=engine, command=["sleep", "600"])
        else:
            container["image"] = image
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    podman("play", "kube", tmp_path / "pod.yaml")
    try:
        waited_for(lambda: serves(podman, "engine-with-dkvd-dkvd"), "dkvd", 60)
        words = ["dkv_c_engine", "--endpoint", "ipc:///run/dkv/own/dkvd.sock", "--tokens", "600", "--capacity", "128"]
        said = podman("exec", "engine-with-dkvd-engine", *words)
    finally:
        podman("play", "kube", "--down", tmp_path / "pod.yaml")
    assert compressed(said)
