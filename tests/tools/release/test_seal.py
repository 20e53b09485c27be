"""Checksums and their signature, verified as docs/OPERATING.md says."""

from __future__ import annotations

import subprocess

import pytest
from processes import ROOT


@pytest.fixture
def sealed(tmp_path):
    """A folder with two files, sealed with a new key, and the list of signers that is published."""
    folder, key = tmp_path / "1.2.0", tmp_path / "key"
    folder.mkdir()
    (folder / "dkv.deb").write_bytes(b"package")
    (folder / "dkv bom.json").write_bytes(b"{}")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dkv", "-f", key], check=True)
    subprocess.run([ROOT / "tools/release/seal.sh", folder, key], check=True)
    (tmp_path / "signers").write_text(f"dkv {(tmp_path / 'key.pub').read_text()}")
    return folder


def verified(folder) -> bool:
    words = "ssh-keygen -Y verify -f ../signers -I dkv -n dkv-release -s SHA256SUMS.sig <SHA256SUMS && sha256sum -c SHA256SUMS"
    return subprocess.run(["sh", "-c", words], cwd=folder, capture_output=True).returncode == 0


def test_a_release_is_verified_and_every_file_is_in_it(sealed):
    assert verified(sealed)
    names = [line.split(maxsplit=1)[1] for line in (sealed / "SHA256SUMS").read_text().splitlines()]
    assert names == ["dkv bom.json", "dkv.deb"]


def test_a_file_that_changed_is_not_verified(sealed):
    (sealed / "dkv.deb").write_bytes(b"pacKage")
    assert not verified(sealed)


def test_a_checksum_that_changed_with_its_file_is_not_verified(sealed):
    (sealed / "dkv.deb").write_bytes(b"pacKage")
    sums = subprocess.run("sha256sum dkv*", shell=True, cwd=sealed, capture_output=True, text=True).stdout
    (sealed / "SHA256SUMS").write_text(sums)
    assert not verified(sealed)


def test_another_key_is_not_verified(sealed, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    subprocess.run([ROOT / "tools/release/seal.sh", sealed, tmp_path / "other"], check=True)
    assert not verified(sealed)
