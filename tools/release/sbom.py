"""Writes what is linked into dkv's programs and libraries as CycloneDX JSON, checked against CycloneDX's schema.

    .venv-package/bin/python tools/release/sbom.py BUILD -o dkv.cdx.json

BUILD is a build folder in which `programs` was built, without CUDA: names, versions and licences are those of the Debian
packages that its files include and link.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from built import Source, sources_of
from licences import licence_of

SCHEMA = SchemaVersion.V1_6
ROOT = Path(__file__).resolve().parents[2]


def version() -> str:
    return re.search(r"project\(dkv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]


def component(source: Source) -> Component:
    url = PackageURL("deb", "debian", source.name, source.version, {"arch": "source"})
    facts = [Property(name="dkv:debian-package", value=package) for package in sorted(source.packages)]
    facts += [Property(name="dkv:linked", value=name) for name in sorted(source.linked)]
    if source.compiled_in:
        facts.append(Property(name="dkv:compiled-in", value="headers"))
    return Component(
        name=source.name,
        version=source.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(url),
        purl=url,
        licenses=[LicenseFactory().make_from_string(licence_of(source.name, source.copyright))],
        properties=facts,
    )


def bom_of(build: Path) -> Bom:
    sources, direct = sources_of(build)
    parts = {name: component(source) for name, source in sorted(sources.items())}
    bom = Bom()
    licence = LicenseFactory().make_from_string("Apache-2.0")
    bom.metadata.component = Component(
        name="dkv", version=version(), type=ComponentType.APPLICATION, bom_ref=f"dkv@{version()}", licenses=[licence]
    )
    bom.components = parts.values()
    bom.register_dependency(bom.metadata.component, [parts[name] for name in sorted(direct)])
    for name, source in sources.items():
        bom.register_dependency(parts[name], [parts[needed] for needed in sorted(source.needs)])
    # The same build makes the same file.
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", datetime.now(timezone.utc).timestamp()))
    bom.metadata.timestamp = datetime.fromtimestamp(seconds, timezone.utc)
    listed = " ".join(f"{source.name}={source.version}" for source in sources.values())
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"dkv@{version()} {listed}")
    return bom


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    if list(arguments.build.glob("lib/libdkv_cuda.so")):
        # It comes from a wheel of NVIDIA's, of which dpkg knows nothing.
        print(f"sbom.py: {arguments.build} has CUDA's runtime linked in: list a build with -DDKV_CUDA=OFF", file=sys.stderr)
        return 1
    try:
        text = make_outputter(bom_of(arguments.build.resolve()), OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    except LookupError as error:
        print(f"sbom.py: {error.args[0]}", file=sys.stderr)
        return 1
    wrong = JsonStrictValidator(SCHEMA).validate_str(text)
    if wrong:
        print(f"sbom.py: not CycloneDX {SCHEMA.to_version()}: {wrong}", file=sys.stderr)
        return 1
    arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
