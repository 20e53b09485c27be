"""What the linker and the compiler were told about the programs and libraries that are shipped."""

from __future__ import annotations

import subprocess

import pytest
from processes import program

BIN = program("dkvd").parent
BUILT = [BIN / "dkvd", BIN / "dkv", BIN.parent / "lib" / "libdkv.so", BIN.parent / "lib" / "libdkv_cuda.so"]


def read(path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name)
def test_addresses_are_random_and_read_only_and_memory_faults_are_caught(path):
    if not path.exists():
        pytest.skip(f"{path.name} was not built")

    assert "Type:                              DYN" in read(path, "-h"), "not position-independent"
    segments, dynamic, symbols = read(path, "-l"), read(path, "-d"), read(path, "--dyn-syms")
    assert "GNU_RELRO" in segments
    assert "BIND_NOW" in dynamic or "NOW" in dynamic.split("FLAGS_1")[-1]
    assert "RWE" not in next(line for line in segments.splitlines() if "GNU_STACK" in line), "an executable stack"
    assert "__stack_chk_fail" in symbols, "no stack protector"
    assert "_chk@" in symbols, "no FORTIFY_SOURCE"


def test_dkvd_links_nothing_that_works_on_saved_caches():
    def names(path, of: str) -> set[str]:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        return {name for name in of.split() if name in symbols}

    saved = "dkv::offline:: dkv::reference:: dkv::SavedCache dkv::Safetensors dkv::MappedFile dkv::open_cache"

    assert names(BIN / "dkv", saved) == set(saved.split()), "these names are no longer those of the formats"
    assert names(BIN / "dkvd", saved) == set()
