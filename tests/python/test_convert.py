"""Caches that torch.save wrote: read with weights_only, written as dkv's own."""

from __future__ import annotations

import os
import subprocess
import sys

import cuts
import pytest
import torch
from conftest import make_tiny_llama
from fakes import FakeEngine, last_and_every_third, ragged
from processes import program
from test_cache import greedy
from transformers import DynamicCache, EncoderDecoderCache, Gemma2Config, StaticCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer

import dkv.hf
from dkv.command import run
from dkv.hf.commands import convert


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


def refusal(source, path, **options) -> str:
    with pytest.raises(dkv.DkvError) as caught:
        dkv.hf.convert(source, path, **options)
    assert "\n" not in str(caught.value) and not path.exists()
    return str(caught.value).removeprefix("the cache: ")


@pytest.mark.parametrize("room", [40, 128])
@pytest.mark.parametrize("from_file", [False, True])
def test_the_unused_rows_of_a_static_cache_are_not_tokens(tiny_llama, prompt, cache, tmp_path, room, from_file):
    static = StaticCache(config=tiny_llama.config, max_cache_len=room)
    with torch.no_grad():
        tiny_llama(prompt(40), past_key_values=static)
    if from_file:
        torch.save(static, tmp_path / "x.pt")

    dkv.hf.convert(tmp_path / "x.pt" if from_file else static, tmp_path / "x.safetensors", tokens=prompt(40))

    tensors, words = cuts.read(tmp_path / "x.safetensors")
    assert words["n_prompt"] == "40" and tensors["layers.0.keys"].shape == (2, 40, 16)
    torch.testing.assert_close(tensors["layers.3.values"], cache.layers[3].values[0])


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
def test_a_compressed_cache_of_dkv_is_written_with_all_that_came_after_its_prompt(tiny_llama, prompt, tmp_path, keep):
    live = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=keep))
    ids = torch.tensor([greedy(tiny_llama, prompt(300), 9, past_key_values=live)])
    assert live.get_seq_length() == 308

    dkv.hf.convert(live, tmp_path / "x.safetensors", model=tiny_llama, tokens=ids[:, :308])

    tensors, words = cuts.read(tmp_path / "x.safetensors")
    kept = [position for head in (0, 1) for position in [*keep(1, head, 300), *range(300, 308)]]
    assert words["n_prompt"] == "308" and tensors["layers.1.positions"].flatten().tolist() == kept
    loaded = dkv.hf.load(tmp_path / "x.safetensors", tiny_llama)
    out = dkv.hf.generate(tiny_llama, loaded, ids[:, 308:], max_new_tokens=4, do_sample=False)
    assert out[0].tolist() == greedy(tiny_llama, ids, 4, past_key_values=live)


@pytest.mark.parametrize("known", [{"config": True}, {"tokens": True}, {"layout": "THD"}])
def test_tokens_before_heads_are_turned_when_something_tells(tiny_llama, prompt, cache, tmp_path, known):
    exported = [(keys.transpose(1, 2), values.transpose(1, 2)) for keys, values in pairs(cache)]
    given = {"config": tiny_llama.config} if "config" in known else {"tokens": prompt(40)} if "tokens" in known else known

    dkv.hf.convert(exported, tmp_path / "x.safetensors", **given)

    check(tmp_path / "x.safetensors", cache)


def test_an_order_of_dimensions_that_nothing_tells_is_refused(tiny_llama, cache, tmp_path):
    path, config = tmp_path / "x.safetensors", tiny_llama.config
    swapped = [(keys.transpose(1, 2), values.transpose(1, 2)) for keys, values in pairs(cache)]
    square = [(keys[:, :, :2], values[:, :, :2]) for keys, values in pairs(cache)]

    tells = 'layout="HTD" (heads first) or "THD" (tokens first)'
    assert refusal(swapped, path) == (
        f"K of layer 0 is [40, 2, 16], 40 heads of 2 tokens, or 2 heads of 40 tokens: say config=, tokens= or {tells}"
    )
    assert refusal(square, path, config=config) == f"K of layer 0 is [2, 2, 16], as many heads as tokens: say {tells}"
    assert "layout is 'NHD', not 'HTD' or 'THD'" in refusal(swapped, path, layout="NHD")
    assert dkv.hf.convert(square, path, config=config, layout="HTD")


def test_shapes_that_the_config_contradicts_are_refused(tiny_llama, cache, tmp_path):
    path, exported = tmp_path / "x.safetensors", pairs(cache)
    says = "and the config (llama) says 4 of 2 of 16"

    def wrong(changed) -> str:
        return refusal(changed, path, config=tiny_llama.config)

    assert wrong(exported[:3]) == f"it has 3 layers of 2 KV heads of 16, {says}"
    assert wrong([(keys[:, :1], values[:, :1]) for keys, values in exported]) == f"it has 4 layers of 1 KV heads of 16, {says}"
    assert wrong([(keys[..., :8], values[..., :8]) for keys, values in exported]) == f"it has 4 layers of 2 KV heads of 8, {says}"
    many = make_tiny_llama(kv_heads=6)
    assert "says 4 of 6 of 16" in refusal(cache, path, model=many)


def test_layers_that_do_not_keep_every_token_are_refused(tmp_path):
    path, gone = tmp_path / "x.safetensors", "and a file has no place for what they keep"
    config = Gemma2Config(num_hidden_layers=2, sliding_window=8, num_attention_heads=2, num_key_value_heads=1, head_dim=16)

    def filled(cache, layers=2):
        for index in range(layers):
            cache.update(torch.randn(1, 1, 20, 16), torch.randn(1, 1, 20, 16), index)
        return cache

    bounded = f"1 of 2 layers of this {{}} do not keep K and V of every token (layer 0: {{}}), {gone}"
    hybrid = filled(DynamicCache(config=config))
    assert refusal(hybrid, path) == bounded.format("DynamicCache", "DynamicSlidingWindowLayer")
    torch.save(hybrid, tmp_path / "x.pt")
    assert refusal(tmp_path / "x.pt", path).endswith(bounded.format("DynamicCache", "DynamicSlidingWindowLayer"))
    static = filled(StaticCache(config=config, max_cache_len=32))
    assert refusal(static, path) == bounded.format("StaticCache", "StaticSlidingWindowLayer")
    # A cache made without the config keeps every token, and the model could not take it up again.
    plain = filled(DynamicCache())
    assert refusal(plain, path, config=config).startswith("1 of 2 layers of gemma2 do not keep")

    class Mine(DynamicLayer):
        pass

    plain.layers[1].__class__ = Mine
    assert "(layer 1: Mine)" in refusal(plain, path)


def test_quantised_and_encoder_decoder_caches_are_refused_by_name(cache, tmp_path):
    path = tmp_path / "x.safetensors"

    class TinyQuantizedLayer(QuantizedLayer):
        _quantize = _dequantize = None

    quantised = DynamicCache()
    quantised.layers = [TinyQuantizedLayer() for _ in range(4)]
    assert refusal(quantised, path) == (
        "4 of its 4 layers are quantised (TinyQuantizedLayer): run the prompt with a DynamicCache"
    )
    both = EncoderDecoderCache(cache, DynamicCache())
    two = "it is an EncoderDecoderCache with two caches: give the one that is meant, its self_attention_cache or its "
    assert refusal(both, path) == two + "cross_attention_cache"
    torch.save(both, tmp_path / "x.pt")
    assert two in refusal(tmp_path / "x.pt", path)
    assert "layer 0 has 4 parts, as an encoder-decoder's" in refusal([pair + pair for pair in pairs(cache)], path)
    assert dkv.hf.convert(both.self_attention_cache, path)


def test_rows_that_a_file_cannot_hold_are_refused_before_it_is_begun(tiny_llama, prompt, cache, tmp_path):
    path, exported = tmp_path / "x.safetensors", pairs(cache)

    def of(keys, values=lambda rows: rows) -> str:
        return refusal([(keys(k), values(v)) for k, v in exported], path)

    double = of(lambda rows: rows.double(), lambda rows: rows.double())
    assert double == "K of layer 0 is torch.float64: a file has float32, float16 or bfloat16, so convert the rows first"
    assert "K of layer 0 is torch.float8_e4m3fn: a file has" in of(lambda rows: rows.to(torch.float8_e4m3fn))
    mixed = of(lambda rows: rows, lambda rows: rows.half())
    assert "V of layer 0 is torch.float16 [2, 40, 16], and K of layer 0 is torch.float32" in mixed
    assert "V of layer 0 is on the meta device: it has a shape and no data" in of(lambda rows: rows, lambda rows: rows.to("meta"))
    assert "K of layer 0 is [3, 2, 40, 16], a batch of 3: a file has one sequence" in of(lambda rows: torch.cat([rows] * 3))
    assert "V of layer 0 has rows of 8 and K of 16, as multi-head latent attention (MLA)" in of(
        lambda rows: rows, lambda rows: rows[..., :8]
    )
    bad = [(keys, values.clone()) for keys, values in exported]
    bad[2][1][0, 1, 7, 3] = float("nan")
    assert "layers.2.values has 1 values that are not finite, the first at [1, 7, 3]" in refusal(bad, path)
    shorter = tuple(rows[:, :, :30] for rows in exported[2])
    short = DynamicCache([*exported[:2], shorter, exported[3]])
    assert refusal(short, path).startswith("layer 2 has 30 tokens, and layer 0 has 40: a file needs the row of every token")
    assert refusal(DynamicCache(), path) == "it is empty: no prompt has run with it"
    assert refusal(StaticCache(config=tiny_llama.config, max_cache_len=9), path) == "it is empty: no prompt has run with it"


def test_token_ids_of_another_text_are_refused(tiny_llama, prompt, cache, tmp_path):
    path, config = tmp_path / "x.safetensors", tiny_llama.config

    def wrong(tokens) -> str:
        return refusal(cache, path, config=config, tokens=tokens)

    assert wrong(prompt(39)) == "39 token ids came with 40 tokens"
    assert wrong(prompt(40)[0].tolist()) == "tokens are a list, not a tensor of ids"
    assert wrong(prompt(40) + 510).startswith("token ids go from 5") and wrong(prompt(40) + 510).endswith("and the model has 512")
    padded = prompt(40).clone()
    padded[0, :5] = 0
    assert wrong(padded) == "the prompt begins with 5 padding tokens (id 0): run it without padding"


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
    assert "it is a dict, not a list of (K, V) per layer or a cache of transformers" in str(error({"keys": torch.zeros(3)}))
    assert "layer 1 is a tuple of 1, not a pair of tensors (K, V)" in str(error([pairs(cache)[0], (torch.zeros(3),)]))
    assert "it has no layers" in str(error([]))
    uneven = [pairs(cache)[0], tuple(rows[:, :, :30] for rows in pairs(cache)[1])]
    assert "K of layer 1 is torch.float32 [2, 30, 16], and K of layer 0 is torch.float32 [2, 40, 16]" in str(error(uneven))
    batch = [(torch.zeros(2, 2, 8, 16), torch.zeros(2, 2, 8, 16))]
    assert "K of layer 0 is [2, 2, 8, 16], a batch of 2: a file has one sequence" in str(error(batch))
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

    command = [sys.executable, "-m", "dkv", "convert", "x.pt", "-o", "x.safetensors", "--model", "tiny", "--tokens", "ids.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert check(tmp_path / "x.safetensors", cache)["model"] == "tiny"
    assert cuts.read(tmp_path / "x.safetensors")[0]["tokens"].tolist() == prompt(40)[0].tolist()


def test_a_file_that_is_missing_is_one_line(tmp_path, capsys):
    assert run(lambda: convert([f"{tmp_path}/none.pt", "-o", f"{tmp_path}/y.safetensors"])) == 1
    assert capsys.readouterr().err == f"dkv: {tmp_path}/none.pt: No such file or directory\n"


@pytest.mark.e2e
def test_the_c_side_says_who_reads_torch_s_files(cache, tmp_path):
    torch.save(pairs(cache), tmp_path / "x.pt")

    done = subprocess.run([program("dkv"), "inspect", tmp_path / "x.pt"], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.startswith(f"dkv: {tmp_path}/x.pt: none of the formats I know")
    assert done.stderr.endswith(
        "; torch.save's files are read by the Python package alone: python -m dkv convert, or dkv.hf.convert()\n"
    )
    assert done.stderr.count("\n") == 1


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
