"""The Kubernetes manifests against Kubernetes' own schemas, and what the schemas do not say."""

from __future__ import annotations

import re

import kubernetes_validate
import pytest
import yaml
from processes import ROOT

FILES = sorted((ROOT / "tools" / "package" / "kubernetes").glob("*.yaml"))
VERSION = re.search(r"project\(dkv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
RELEASES = ["1.29", kubernetes_validate.latest_version()]  # 1.29: sidecar containers, and the oldest that is tried.


def documents(path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def pods() -> list:
    found = []
    for path in FILES:
        for one in documents(path):
            spec = {"Pod": lambda: one["spec"], "DaemonSet": lambda: one["spec"]["template"]["spec"]}.get(one["kind"])
            if spec is not None:
                found.append(pytest.param(spec(), id=f"{path.stem}-{one['kind']}"))
    return found


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kubernetes_takes_every_document(path, release):
    for one in documents(path):
        kubernetes_validate.validate(one, release, strict=True)


def test_the_schemas_refuse_a_field_that_is_not_there():
    pod = next(one for path in FILES for one in documents(path) if one["kind"] == "Pod")
    pod["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, RELEASES[0], strict=True)


@pytest.mark.parametrize("pod", pods())
def test_every_container_is_bounded_and_without_capabilities_that_it_does_not_need(pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"] and security["allowPrivilegeEscalation"] is False
        assert set(security["capabilities"].get("add", [])) <= ({"CHOWN", "FOWNER"} if container["name"] == "folder" else set())
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pod", pods())
def test_dkvd_is_of_this_version_and_is_asked_how_it_is(pod):
    dkvd = next(container for container in pod["containers"] if container["name"] == "dkvd")
    assert dkvd["image"] == f"localhost/dkv:{VERSION}"
    assert dkvd["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert dkvd["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert pod.get("hostPID") or pod.get("shareProcessNamespace")
    assert f"localhost/dkv:{VERSION}" in (ROOT / "tools/package/container/compose.yaml").read_text()
