"""What is said to be linked and compiled in, of the programs that were built."""

from __future__ import annotations

import subprocess

import pytest
from built import sources_of
from licences import licence_of
from processes import program


@pytest.fixture(scope="module")
def found():
    return sources_of(program("dkvd").parents[1])


def test_every_library_has_the_version_of_the_package_that_is_installed(found):
    sources, _ = found
    for source in sources.values():
        for package in source.packages:
            words = ["dpkg-query", "-W", "-f", "${source:Version}", package]
            assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == source.version


def test_what_dkv_uses_is_found_linked_or_compiled_in(found):
    sources, direct = found
    linked = {name for name, source in sources.items() if source.linked}
    headers = {name for name, source in sources.items() if source.compiled_in}
    assert {"zeromq3", "onetbb", "highway", "prometheus-cpp", "spdlog", "fmtlib", "libisal", "tomlplusplus"} <= linked & direct
    assert {"flatbuffers", "cli11", "nlohmann-json3", "cppzmq"} <= (headers - linked) & direct
    assert "doctest" not in sources  # Of the tests alone.
    assert "libsodium" in sources["zeromq3"].needs and "libsodium" not in direct


def test_every_one_has_a_licence_and_another_kind_is_refused_by_name(found, tmp_path):
    sources, _ = found
    licences = {name: licence_of(name, source.copyright) for name, source in sources.items()}
    assert licences["flatbuffers"] == "Apache-2.0" and licences["cli11"] == "BSD-3-Clause"
    assert licences["zeromq3"] == "LGPL-3.0-or-later WITH LGPL-3.0-linking-exception"

    (tmp_path / "copyright").write_text("Format: x\n\nFiles: *\nCopyright: y\nLicense: Beerware\n")
    with pytest.raises(LookupError, match="says 'Beerware' of its files: add it to SPDX or strange to READ"):
        licence_of("strange", tmp_path / "copyright")
    (tmp_path / "copyright").write_text("This is free.\n")
    with pytest.raises(LookupError, match="no licence that a program can read"):
        licence_of("strange", tmp_path / "copyright")
