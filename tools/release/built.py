"""What a build folder's programs and libraries are made of, as ninja, ldd and dpkg know it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# What a user gets, in the build folder.
SHIPPED = ("bin/dkvd", "bin/dkv", "lib/libdkv.so", "lib/libdkv_llama.so", "lib/libdkv_llama_preload.so")
# Headers of the kernel describe an interface: none of its code is compiled in.
INTERFACES = {"linux"}


@dataclass
class Source:
    """A Debian source package of which something is compiled in or linked."""

    name: str
    version: str
    copyright: Path
    packages: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)  # Shared libraries, found when the program starts.
    compiled_in: bool = False  # Headers.
    needs: set[str] = field(default_factory=set)  # Names of other sources that its libraries need.


def said_by(*words) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def sources_of(build: Path) -> tuple[dict[str, Source], set[str]]:
    """Sources by name, and the names of those that dkv itself includes or links."""
    libraries = _libraries(build)
    owners = _owners([*libraries.values(), *_headers(build)])
    sources: dict[str, Source] = {}

    def source_of(path: str) -> Source | None:
        package = owners.get(os.path.realpath(path))
        if package is None:
            raise LookupError(f"{path} belongs to no Debian package: only those have a version and a licence here")
        one = _source(package)
        if one.name in INTERFACES:
            return None
        known = sources.setdefault(one.name, one)
        known.packages.add(package)
        return known

    direct = set()
    for path in _headers(build):
        if (source := source_of(path)) is not None:
            source.compiled_in = True
            direct.add(source.name)
    for name, path in libraries.items():
        source = source_of(path)
        source.linked.add(name)
        source.needs |= {source_of(libraries[needed]).name for needed in _needed(path) if needed in libraries}
    for file in SHIPPED:
        direct |= {source_of(libraries[needed]).name for needed in _needed(build / file) if needed in libraries}
    for source in sources.values():
        source.needs.discard(source.name)
    return sources, direct


def _libraries(build: Path) -> dict[str, str]:
    """Every shared library of the shipped files, by the name that they ask for; also those of libraries."""
    found = {}
    for file in SHIPPED:
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", said_by("ldd", build / file), re.M):
            if not path.startswith(str(build)):
                found[name] = path
    return dict(sorted(found.items()))


def _needed(file) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", said_by("readelf", "-dW", file))


def _headers(build: Path) -> list[str]:
    """Those outside of the sources that the objects of the shipped files include, by ninja's own record."""
    targets = [str(Path(file)) for file in SHIPPED]
    archives = set(said_by("ninja", "-C", build, "-t", "inputs", *targets).split())
    folders = {re.sub(r"\.dir/.*", ".dir", path) for path in archives if ".dir/" in path}
    folders = {os.path.relpath(path, build) if os.path.isabs(path) else path for path in folders}
    headers, ours = set(), False
    for line in said_by("ninja", "-C", build, "-t", "deps").splitlines():
        if line and not line.startswith(" "):
            ours = re.sub(r"\.dir/.*", ".dir", line.partition(":")[0]) in folders
        elif ours and line.strip().startswith("/usr/include/"):
            headers.add(line.strip())
    return sorted(headers)


def _owners(paths) -> dict[str, str]:
    """The installed package of each file. dpkg knows some of them by the name before /usr was merged."""
    wanted = {os.path.realpath(path) for path in paths}
    asked = wanted | {path.removeprefix("/usr") for path in wanted if path.startswith("/usr/lib")}
    done = subprocess.run(["dpkg", "-S", *sorted(asked)], capture_output=True, text=True)
    owners = {}
    for line in done.stdout.splitlines():
        package, _, path = line.partition(": ")
        owners[path if path in wanted else f"/usr{path}"] = package.partition(",")[0]
    return owners


_known: dict[str, Source] = {}


def _source(package: str) -> Source:
    if package not in _known:
        shown = said_by("dpkg-query", "-W", "-f", "${source:Package}\t${source:Version}", package)
        name, version = shown.split("\t")
        file = Path("/usr/share/doc", package.partition(":")[0], "copyright")
        _known[package] = Source(name, version, file)
    return _known[package]
