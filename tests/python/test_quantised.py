"""Rows of fewer bits: read from files made by hand, and from the real program's."""

from __future__ import annotations

import re

import cuts
import pytest
import torch
from conftest import make_tiny_llama
from fakes import ragged
from test_load import loaded_text, run_dkv

import dkv.hf
from dkv.errors import DkvError
from dkv.hf.files import SavedFile
from dkv.hf.quantised import QuantisedRows

HALF = bytes([0x00, 0x38])  # f16 0.5
MINUS_TWO = bytes([0x00, 0xC0])


def packed(*blocks: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(blocks)), dtype=torch.uint8)


def test_q8_0_is_a_scale_and_signed_numbers():
    rows = QuantisedRows("q8_0", 1, 32).unpacked(packed(HALF, bytes([127, 129]), bytes(29), bytes([255])))

    assert rows.tolist() == [63.5, -63.5, *[0.0] * 29, -0.5]


def test_q4_0_has_its_first_half_in_the_low_four_bits():
    rows = QuantisedRows("q4_0", 1, 32).unpacked(packed(MINUS_TWO, bytes([0x90, 0xFF]), bytes([0x88] * 14)))

    assert rows.tolist() == [16.0, -14.0, *[0.0] * 14, -2.0, -14.0, *[0.0] * 14]


def test_a_rotated_row_is_turned_back_in_its_runs():
    codes = torch.zeros(64, dtype=torch.int8)
    codes[0], codes[32] = 4, 8
    blocks = [HALF + bytes(codes[begin : begin + 32].tolist()) for begin in (0, 32)]

    rows = QuantisedRows("q8_0", 4, 64).unpacked(packed(*blocks))

    assert rows.tolist() == [*[1.0] * 4, *[0.0] * 28, *[2.0] * 4, *[0.0] * 28]


def test_the_longest_run_that_a_file_may_name_takes_no_more_than_its_row():
    dims = 1 << 20

    rows = QuantisedRows.of("q8_0", str(dims), dims // 32 * 34).unpacked(packed(HALF, bytes([64]), bytes(31 + (dims // 32 - 1) * 34)))

    assert rows.tolist() == [32 / 1024] * dims


@pytest.fixture
def model():
    return make_tiny_llama(head_dim=32)


@pytest.fixture
def saved(model, prompt, tmp_path):
    path = tmp_path / "prompt.safetensors"
    dkv.hf.save(model, prompt(300), path, queries=8)
    return path


def packed_q8_0(rows: torch.Tensor) -> torch.Tensor:
    """[…, 34], without a rotation. rows […, 32]"""
    scale = (rows.abs().amax(-1, keepdim=True) / 127).half()
    codes = (rows / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], dim=-1)


def by_hand(source, target, keep=None, crcs=True, **said):
    """A file of version 2, without queries."""
    whole = cuts.cut(source, target, keep or (lambda layer, head, count: range(count)))
    tensors, words = cuts.read(whole)
    for name in [name for name in tensors if name.endswith((".keys", ".values"))]:
        tensors[name] = packed_q8_0(tensors[name])
    if keep is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".positions")}
    words = cuts.unsummed(words) | {"version": "2", "rows": "q8_0", "rows.rotation": "1", "rows.dtype": "F32"}
    words |= {key.replace("__", "."): value for key, value in said.items()}
    return cuts.write(target, tensors, words, crcs)


@pytest.mark.parametrize("keep", [None, ragged])
def test_a_file_of_version_2_comes_back_as_rows_of_its_dtype(model, saved, tmp_path, keep):
    path = by_hand(saved, tmp_path / "eight.safetensors", keep)
    whole = SavedFile.open(saved)

    file, cache = SavedFile.open(path), dkv.hf.load(path, model)

    assert (file.head_dim, file.dtype, file.quantised.type) == (32, torch.float32, "q8_0")
    for index in range(4):
        found, wanted = file.layer(index), whole.layer(index)
        for head in range(2):
            at = found.positions[head] if keep else list(range(300))
            for part in ("keys", "values"):
                rows, exact = getattr(found, part)[head], getattr(wanted, part)[head][at]
                assert 0 < (rows - exact).abs().max() < 0.01 * exact.abs().max()
    assert len(loaded_text(model, cache, 4)) == 4


@pytest.mark.parametrize(
    "said, message",
    [
        ({"rows": "q6_k"}, "its rows are 'q6_k', and only q8_0, q4_0 and q4_0+q4_0 are known here"),
        ({"rows": "q4_0"}, "rows of 34 bytes are not blocks of q4_0, of 18 bytes"),
        ({"rows__rotation": "48"}, "the metadata's rows.rotation is 48, of rows of 32 dims"),
        ({"rows__dtype": "F64"}, "the metadata's rows.dtype is None, not float32, float16 or bfloat16"),
        ({"version": "3"}, "its version is 3, and only 1 and 2 are known here"),
    ],
)
def test_what_a_file_says_wrongly_of_its_rows_is_refused(saved, tmp_path, said, message):
    with pytest.raises(DkvError, match=re.escape(message)):
        SavedFile.open(by_hand(saved, tmp_path / "x.safetensors", **said))


def test_a_scale_that_is_not_finite_is_refused(saved, tmp_path):
    path = by_hand(saved, tmp_path / "x.safetensors")
    tensors, words = cuts.read(path)
    tensors["layers.2.values"][0, 7, 1] = 0x7C
    cuts.write(path, tensors, cuts.unsummed(words))

    with pytest.raises(DkvError, match=r"layers\.2\.values: an element is a NaN, or beyond torch\.\w+"):
        SavedFile.open(path).layer(2)


@pytest.mark.e2e
def test_mixed_rows_are_in_4_bits_and_the_best_in_8(model, saved, tmp_path):
    mixed, back = tmp_path / "mixed.safetensors", tmp_path / "back.safetensors"
    run_dkv("compact", saved, "-o", mixed, "--bits", "mixed", "--policy", "dynamickv", "--capacity", 32, "--window", 8)
    exact = SavedFile.open(saved)

    file = SavedFile.open(mixed)

    kept = sum(sum(file.layer(index).lengths) for index in range(4))
    share = 0.25 * kept / (4 * 2 * 300)

    for index in range(4):
        found, whole = file.layer(index), exact.layer(index)
        for head in range(2):
            for part in ("keys", "values"):
                rows, wanted = getattr(found, part)[head], getattr(whole, part)[head][found.positions[head]]
                off = (rows - wanted).norm(dim=-1) / wanted.norm(dim=-1)
                assert int((off < 0.02).sum()) == int(share * len(rows)) and float(off.max()) < 0.2
    assert len(loaded_text(model, dkv.hf.load(mixed, model), 8)) == 8
    assert "q4_0+q4_0, rotated by 32" in run_dkv("inspect", "--verify", mixed).stdout
    run_dkv("convert", mixed, "-o", back)
    for index in range(4):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(file.layer(index).keys, SavedFile.open(back).layer(index).keys))


@pytest.mark.parametrize("rows", [[3, 3], [-1], [600]])
def test_refined_rows_that_are_none_of_the_layer_s_are_refused(saved, tmp_path, rows):
    path = by_hand(saved, tmp_path / "x.safetensors", rows="q4_0+q4_0")
    tensors, words = cuts.read(path)
    for layer in range(4):
        for part in ("keys", "values"):
            tensors[f"layers.{layer}.{part}"] = torch.zeros(2, 300, 18, dtype=torch.uint8)
            tensors[f"layers.{layer}.{part}_rest"] = torch.zeros(len(rows), 18, dtype=torch.uint8)
        tensors[f"layers.{layer}.refined"] = torch.tensor(rows, dtype=torch.int32)
    cuts.write(path, tensors, cuts.unsummed(words))

    with pytest.raises(DkvError, match=r"layers\.0\.refined are not ascending within 0 … 599"):
        SavedFile.open(path).layer(0)


@pytest.mark.e2e
@pytest.mark.parametrize("bits, share", [(8, 0.02), (4, 0.2)])
def test_the_program_s_rows_are_those_of_the_prompt(model, saved, tmp_path, bits, share):
    small, plain = tmp_path / "small.safetensors", tmp_path / "plain.safetensors"
    run_dkv("compact", saved, "-o", small, "--bits", bits, "--policy", "dynamickv", "--capacity", 32, "--window", 8)
    cache = dkv.hf.load(small, model)
    capacity = int(cache.provenance["capacity"])
    assert capacity == 32 * 256 // (68 if bits == 8 else 36)
    run_dkv("compact", saved, "-o", plain, "--policy", "dynamickv", "--capacity", capacity, "--window", 8)

    file, exact = SavedFile.open(small), SavedFile.open(plain)

    for index in range(4):
        found, wanted = file.layer(index), exact.layer(index)
        assert found.positions == wanted.positions
        for head in range(2):
            for part in ("keys", "values"):
                off = getattr(found, part)[head] - getattr(wanted, part)[head]
                assert 0 < off.norm() < share * getattr(wanted, part)[head].norm()
    assert len(loaded_text(model, cache, 8)) == 8
    words = run_dkv("inspect", "--verify", small).stdout
    assert f"q{bits}_0, rotated by 32" in words and "dkv 2" in words
