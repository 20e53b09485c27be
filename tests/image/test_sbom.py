"""The list of what is linked, as a release has it: CycloneDX's own schema takes it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from processes import ROOT


SBOM = [sys.executable, ROOT / "tools/release/sbom.py"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("sbom") / "dkv.cdx.json"
    subprocess.run([*SBOM, ROOT / "build/deb", "-o", out], check=True)  # As `make deb` left it.
    return out.read_text()


def test_the_schema_takes_it_and_refuses_it_with_a_field_that_is_not_there(written):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(written) is None
    broken = json.loads(written)
    broken["components"][0]["licence"] = "MIT"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_every_component_has_a_version_a_licence_and_an_address(written):
    bom = json.loads(written)
    assert bom["metadata"]["component"]["name"] == "dkv"
    for one in bom["components"]:
        assert one["version"] and one["licenses"] and one["purl"].startswith(f"pkg:deb/debian/{one['name']}@")
    refs = {one["bom-ref"] for one in bom["components"]}
    reached, edge = set(), [bom["metadata"]["component"]["bom-ref"]]
    graph = {one["ref"]: one.get("dependsOn", []) for one in bom["dependencies"]}
    while edge:
        fresh = set(graph[edge.pop()]) - reached
        reached |= fresh
        edge += fresh
    assert reached == refs


def test_a_build_with_cuda_is_refused_because_dpkg_does_not_know_its_runtime(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libdkv_cuda.so").touch()
    done = subprocess.run([*SBOM, tmp_path, "-o", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr == f"sbom.py: {tmp_path} has CUDA's runtime linked in: list a build with -DDKV_CUDA=OFF\n"
