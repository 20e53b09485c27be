"""Saved caches and the libraries that own their formats: safetensors reads what dkv writes, and the other way round."""

from __future__ import annotations

import json
import struct
import subprocess

import pytest
import torch
from processes import program
from safetensors import safe_open
from safetensors.torch import save_file

LAYERS, HEADS, Q_HEADS, TOKENS, DIM, WINDOW, THETA = 3, 2, 4, 200, 16, 8, 10000.0


def dkv(*arguments):
    ran = subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def facts_of(path, *flags):
    return json.loads(dkv("inspect", "--verify", "--json", path, *flags))["files"][0]


def turned(rows, positions):
    """Rope as Hugging Face has it: the two halves of a row turn together."""
    frequencies = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    angles = positions[..., None].double() * frequencies
    first, second = rows.double().chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def prompt(request):
    """Keys before rope, and the tensors of a whole cache as [heads, tokens, dim]."""
    random = torch.Generator().manual_seed(7)
    plain = [torch.randn(HEADS, TOKENS, DIM, generator=random) for _ in range(LAYERS)]
    keys = [turned(rows, torch.arange(TOKENS)).to(request.param) for rows in plain]
    values = [torch.randn(HEADS, TOKENS, DIM, generator=random).to(request.param) for _ in range(LAYERS)]
    queries = [torch.randn(Q_HEADS, WINDOW, DIM, generator=random).to(request.param) for _ in range(LAYERS)]
    return plain, keys, values, queries


@pytest.fixture
def saved(prompt, tmp_path):
    """dkv's own format, by the public library alone: no checksums, no provenance."""
    _, keys, values, queries = prompt
    path = tmp_path / "in.safetensors"
    save_file(
        {
            f"layers.{layer}.{part}": tensors[layer]
            for part, tensors in (("keys", keys), ("values", values), ("q_window", queries))
            for layer in range(LAYERS)
        },
        path,
        metadata={"format": "dkv", "version": "1", "model": "made up", "n_prompt": str(TOKENS)},
    )
    return path


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def same(found, wanted):
    return found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_a_file_of_the_public_library_is_accepted_and_called_unverified(saved):
    facts = facts_of(saved)
    assert not facts["checksums"] and not facts["compacted"]


@pytest.mark.parametrize("granularity", ["layer", "layer-head"])
def test_the_public_library_reads_what_compact_writes(saved, prompt, tmp_path, granularity):
    _, keys, values, queries = prompt
    small = tmp_path / "small.safetensors"
    flags = ["--policy", "dynamickv", "--capacity", "32", "--window", WINDOW, "--granularity", granularity]
    dkv("compact", saved, "-o", small, *flags, "--keep-queries")
    tensors, words = read(small)
    assert words["format"] == "dkv" and words["n_prompt"] == str(TOKENS)
    rows = 0
    for layer in range(LAYERS):
        positions = tensors[f"layers.{layer}.positions"].long()
        offsets = tensors.get(f"layers.{layer}.head_offsets")
        for head in range(HEADS):
            kept = positions[head] if offsets is None else positions[offsets[head] : offsets[head + 1]]
            for part, source in (("keys", keys), ("values", values)):
                tensor = tensors[f"layers.{layer}.{part}"]
                mine = tensor[head] if offsets is None else tensor[offsets[head] : offsets[head + 1]]
                assert same(mine, source[layer][head][kept])
            rows += len(kept)
        assert same(tensors[f"layers.{layer}.q_window"], queries[layer])
    assert rows == 32 * LAYERS * HEADS
    assert (granularity == "layer-head") == any("head_offsets" in name for name in tensors)


def test_an_hf_export_goes_there_and_back(saved, prompt, tmp_path):
    _, keys, values, _ = prompt
    export, back = tmp_path / "hf.safetensors", tmp_path / "back.safetensors"
    dkv("convert", saved, "-o", export, "--format", "hf")
    tensors, words = read(export)
    assert len(tensors) == 2 * LAYERS and words["n_prompt"] == str(TOKENS)
    for layer in range(LAYERS):
        assert same(tensors[f"k_{layer}"], keys[layer][None])
        assert same(tensors[f"v_{layer}"], values[layer][None])
    # As a user's own export has it: nothing but tensors.
    save_file(tensors, export)
    dkv("convert", export, "-o", back, "--format", "dkv")
    tensors, _ = read(back)
    for layer in range(LAYERS):
        assert same(tensors[f"layers.{layer}.values"], values[layer])


@pytest.mark.parametrize("version", ["mlx-lm", "mlx-lm@0.31"])
def test_mlx_lm_gets_keys_of_the_positions_that_it_will_count(saved, prompt, tmp_path, version):
    plain, keys, values, _ = prompt
    small, cache = tmp_path / "small.safetensors", tmp_path / "mlx.safetensors"
    dkv("compact", saved, "-o", small, "--policy", "dynamickv", "--capacity", "32", "--window", WINDOW)
    dkv("convert", small, "-o", cache, "--format", version, "--rope-theta", THETA)
    kept, _ = read(small)
    tensors, words = read(cache)
    # As each generation's tree_unflatten() takes its metadata apart.
    user, classes = (0, 1) if version == "mlx-lm" else (1, 2)
    assert {words[f"{classes}.{layer}"] for layer in range(LAYERS)} == {"KVCache"}
    assert words[f"{user}.model"] == "made up" and json.loads(words[f"{user}.tokenizer_config"]) == {}
    if version == "mlx-lm":
        scalars = [(words[f"2.{layer + 1}.0"], words[f"2.{layer + 1}.1"]) for layer in range(LAYERS)]
        assert words["2.0"] == "" and scalars == [(f"{layer}.2", "scalar") for layer in range(LAYERS)]
    else:
        assert all(words[f"0.{layer}"] == "" for layer in range(LAYERS))
    tolerance = 1e-5 if keys[0].dtype == torch.float32 else 0.04  # The source's rows were rounded once already.
    for layer in range(LAYERS):
        positions = kept[f"layers.{layer}.positions"].long()
        count = positions.shape[1]
        assert tensors[f"{layer}.0"].shape == (1, HEADS, count, DIM)
        assert f"{layer}.2" not in tensors or tensors[f"{layer}.2"].item() == count
        assert (f"{layer}.2" in tensors) == (version == "mlx-lm")
        for head in range(HEADS):
            wanted = turned(plain[layer][head][positions[head]], torch.arange(count))
            torch.testing.assert_close(tensors[f"{layer}.0"][0, head].double(), wanted, atol=tolerance, rtol=0)
            assert same(tensors[f"{layer}.1"][0, head], values[layer][head][positions[head]])


@pytest.mark.parametrize("layout", ["2THD", "T2HD", "TH2D"])
def test_a_vllm_folder_is_read_in_each_of_its_layouts(prompt, tmp_path, layout):
    _, keys, values, _ = prompt
    folder = tmp_path / "storage" / "0f3a"
    folder.mkdir(parents=True)
    for layer in range(LAYERS):
        k, v = keys[layer].transpose(0, 1), values[layer].transpose(0, 1)
        tensor = {
            "2THD": lambda: torch.stack([k, v]),
            "T2HD": lambda: torch.stack([k, v], dim=1),
            "TH2D": lambda: torch.cat([k, v], dim=-1),
        }[layout]()
        save_file({"kv_cache": tensor.contiguous()}, folder / f"model.layers.{layer}.self_attn.attn.safetensors")
    ask = ["--layout", layout] if layout == "TH2D" else []  # Two heads: [T, 2, 2D] may be [T, 2, H·D].
    back = tmp_path / "back.safetensors"
    dkv("convert", folder.parent, "-o", back, "--format", "dkv", *ask)
    tensors, _ = read(back)
    for layer in range(LAYERS):
        assert same(tensors[f"layers.{layer}.keys"], keys[layer])
        assert same(tensors[f"layers.{layer}.values"], values[layer])


def test_lmcache_chunks_become_one_prompt(prompt, tmp_path):
    _, keys, values, _ = prompt
    folder = tmp_path / "chunks"
    folder.mkdir()
    code = {torch.float32: 4, torch.bfloat16: 3}[keys[0].dtype]
    for index, begin in enumerate(range(0, TOKENS, 64)):
        both = torch.stack([torch.stack(part) for part in (keys, values)])  # [2, L, H, T, D]
        chunk = both[:, :, :, begin : begin + 64].transpose(2, 3).flatten(3).contiguous()
        data = chunk.view(torch.uint8).numpy().tobytes()
        header = struct.pack("iiiiiii", len(data), 1, code, *chunk.shape)
        (folder / f"{index}.data").write_bytes(header + data)
    back = tmp_path / "back.safetensors"
    dkv("convert", folder, "-o", back, "--format", "dkv", "--kv-heads", HEADS)
    tensors, words = read(back)
    assert words["n_prompt"] == str(TOKENS)
    for layer in range(LAYERS):
        assert same(tensors[f"layers.{layer}.keys"], keys[layer])
        assert same(tensors[f"layers.{layer}.values"], values[layer])
