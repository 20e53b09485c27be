"""Caches that torch.save wrote: read with weights_only, written as dkv's own."""

from __future__ import annotations

import os
import subprocess
import sys

import cuts
import pytest
import torch
from processes import program

import dkv.hf


@pytest.fixture
def cache(tiny_llama, prompt):
    with torch.no_grad():
        return tiny_llama(prompt(40)).past_key_values


def pairs(cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def check(path, cache) -> dict[str, str]:
    tensors, words = cuts.read(path)
    for index, (keys, values) in enumerate(pairs(cache)):
        assert torch.equal(tensors[f"layers.{index}.keys"], keys[0])
        assert torch.equal(tensors[f"layers.{index}.values"], values[0])
    assert words["n_prompt"] == "40" and words["format"] == "dkv" and "layers.0.q_window" not in tensors
    return words


@pytest.mark.parametrize("form", ["cache", "list", "tuple", "three dimensions", "old format of torch"])
def test_what_torch_saved_becomes_a_file_of_ours(cache, tmp_path, form):
    exported = {
        "cache": cache,
        "list": pairs(cache),
        "tuple": tuple(pairs(cache)),
        "three dimensions": [(keys[0], values[0]) for keys, values in pairs(cache)],
        "old format of torch": pairs(cache),
    }[form]
    torch.save(exported, tmp_path / "x.pt", _use_new_zipfile_serialization=form != "old format of torch")

    size = dkv.hf.convert(tmp_path / "x.pt", tmp_path / "x.safetensors", model="tiny")

    assert size == (tmp_path / "x.safetensors").stat().st_size
    words = check(tmp_path / "x.safetensors", cache)
    assert (words["model"], words["provenance.source"], words["provenance.source_format"]) == ("tiny", "x.pt", "torch.save")


def test_a_cache_in_memory_is_converted_too_with_its_model_s_rope_and_tokens(tiny_llama, prompt, cache, tmp_path):
    dkv.hf.convert(cache, tmp_path / "x.safetensors", model=tiny_llama, tokens=prompt(40))

    assert check(tmp_path / "x.safetensors", cache)["rope.theta"] == "10000"
    loaded = dkv.hf.load(tmp_path / "x.safetensors", tiny_llama)
    assert loaded.tokens.tolist() == prompt(40).tolist()


def test_sliding_layers_of_a_hybrid_are_left_out(tmp_path):
    from transformers import DynamicCache, Gemma2Config

    config = Gemma2Config(num_hidden_layers=2, sliding_window=8, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    cache = DynamicCache(config=config)
    for index in range(2):
        cache.update(torch.randn(1, 1, 20, 16), torch.randn(1, 1, 20, 16), index)
    whole = [layer for layer in cache.layers if not layer.is_sliding]
    torch.save(cache, tmp_path / "x.pt")

    dkv.hf.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")

    tensors, _ = cuts.read(tmp_path / "x.safetensors")
    assert len(whole) == 1 and set(tensors) == {"layers.0.keys", "layers.0.values"}
    assert torch.equal(tensors["layers.0.keys"], whole[0].keys[0])


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/dkv-evil",))


def test_what_is_no_cache_is_refused_in_one_line_and_never_run(cache, tmp_path):
    def error(exported=None, data: bytes | None = None) -> dkv.DkvError:
        path = tmp_path / "x.pt"
        path.write_bytes(data) if data is not None else torch.save(exported, path)
        with pytest.raises(dkv.DkvError) as caught:
            dkv.hf.convert(path, tmp_path / "x.safetensors")
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert not (tmp_path / "x.safetensors").exists()
        return caught.value

    found = error([Evil()])
    assert found.status == dkv.Status.UNSUPPORTED and "it holds" in str(found) and "system" in str(found)
    assert "it holds a dict, no list of (K, V)" in str(error({"keys": torch.zeros(3)}))
    assert "layer 1 is no pair of tensors" in str(error([pairs(cache)[0], (torch.zeros(3),)]))
    assert "it has no layers" in str(error([]))
    uneven = [pairs(cache)[0], tuple(rows[:, :, :30] for rows in pairs(cache)[1])]
    assert "K of layer 1 is torch.float32 [2, 30, 16], and K of layer 0 is torch.float32 [2, 40, 16]" in str(error(uneven))
    batch = [(torch.zeros(2, 2, 8, 16), torch.zeros(2, 2, 8, 16))]
    assert "K of layer 0 is [2, 2, 8, 16], not [1, heads, tokens, head_dim]" in str(error(batch))
    assert error(data=b"hello").status == dkv.Status.CORRUPT_DATA
    torch.save(pairs(cache), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for part in range(0, 64, 9):
        assert error(data=data[: len(data) * part // 64]).status == dkv.Status.CORRUPT_DATA, part
    with pytest.raises(dkv.DkvError, match="none: No such file or directory"):
        dkv.hf.convert(tmp_path / "none", tmp_path / "x.safetensors")


def test_the_program_does_the_same(cache, prompt, tmp_path):
    torch.save(pairs(cache), tmp_path / "x.pt")
    (tmp_path / "ids.json").write_text(str(prompt(40)[0].tolist()))

    def run(*arguments):
        command = [sys.executable, "-m", "dkv", "convert", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(tmp_path / "x.pt", "-o", tmp_path / "x.safetensors", "--model", "tiny", "--tokens", tmp_path / "ids.json")

    assert done.returncode == 0, done.stderr
    assert check(tmp_path / "x.safetensors", cache)["model"] == "tiny"
    assert cuts.read(tmp_path / "x.safetensors")[0]["tokens"].tolist() == prompt(40)[0].tolist()
    done = run(tmp_path / "none.pt", "-o", tmp_path / "y.safetensors")
    assert (done.returncode, done.stderr) == (1, f"dkv: {tmp_path}/none.pt: No such file or directory\n")


@pytest.mark.e2e
def test_the_c_side_says_who_reads_torch_s_files(cache, tmp_path):
    torch.save(pairs(cache), tmp_path / "x.pt")

    done = subprocess.run([program("dkv"), "inspect", tmp_path / "x.pt"], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == (
        f"dkv: {tmp_path}/x.pt: torch.save's files are read by the Python package alone: "
        "python -m dkv convert, or dkv.hf.convert()\n"
    )


@pytest.mark.e2e
def test_a_converted_export_is_compacted_by_a_policy_without_queries(cache, tmp_path):
    torch.save(cache, tmp_path / "x.pt")
    dkv.hf.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")

    def compact(policy: str):
        command = [program("dkv"), "compact", tmp_path / "x.safetensors", "-o", tmp_path / "y", "--policy", policy, "--capacity", "8"]
        return subprocess.run([*command, "--window", "4"], capture_output=True, text=True)

    refused = compact("dynamickv")
    assert refused.returncode == 1 and "dkv capture" in refused.stderr
    done = compact("knorm")
    assert done.returncode == 0, done.stderr
    assert cuts.read(tmp_path / "y")[0]["layers.0.keys"].shape == (2, 8, 16)
