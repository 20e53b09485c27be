"""Queries of files that have none: recomputed by the model over the file's own rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cuts
import pytest
import torch
from conftest import make_tiny_llama
from processes import program

import dkv.hf
from dkv import command
from dkv.hf import requery
from dkv.hf.files import SavedFile
from dkv.hf.replay import Instruction, replay_scores
from dkv.hf.requery import recompute


@pytest.fixture
def whole(tiny_llama, prompt, tmp_path):
    """With its queries: what is to come out."""
    path = tmp_path / "whole.safetensors"
    dkv.hf.save(tiny_llama, prompt(300), path, queries=32)
    return path


@pytest.fixture
def mute(whole, tmp_path):
    """The same without queries; its keys may be put into llama.cpp's order."""

    def make(pairs: bool = False, tokens: bool = True, dtype: torch.dtype = torch.float32, **more: str):
        tensors, words = cuts.read(whole)
        made = {}
        for name, rows in tensors.items():
            if name.endswith("q_window") or (name == "tokens" and not tokens):
                continue
            if name.endswith(".keys") and pairs:
                rows = in_pairs(rows)
            made[name] = rows if name == "tokens" else rows.to(dtype)
        words = {key: value for key, value in cuts.unsummed(words).items() if not key.startswith(("rope.", "provenance."))}
        return cuts.write(tmp_path / "mute.safetensors", made, words | more)

    return make


def in_pairs(rows: torch.Tensor) -> torch.Tensor:
    first, second = rows.chunk(2, dim=-1)
    return torch.stack([first, second], dim=-1).flatten(-2)


@pytest.mark.parametrize("window", [1, 8, 32, 300, None])
def test_the_queries_are_those_of_the_prompt_s_own_run(tiny_llama, whole, mute, tmp_path, window):
    recompute(tiny_llama, SavedFile.open(mute()), tmp_path / "out.safetensors", window=window)

    made, words = cuts.read(tmp_path / "out.safetensors")
    expected, expected_words = cuts.read(whole)
    rows = 300 if window is None else window
    for layer in range(4):
        assert made[f"layers.{layer}.q_window"].shape == (6, rows, 16)
        last = min(rows, 32)
        torch.testing.assert_close(
            made[f"layers.{layer}.q_window"][:, -last:], expected[f"layers.{layer}.q_window"][:, -last:], atol=1e-4, rtol=1e-4
        )
        assert torch.equal(made[f"layers.{layer}.keys"], expected[f"layers.{layer}.keys"])
    assert words["rope.theta"] == "10000" and words["rope.interleaved"] == "false"
    assert words["provenance.next_token"] == expected_words["provenance.next_token"]
    assert words["provenance.queries"] == "recomputed by LlamaForCausalLM"


def test_keys_in_llama_cpp_s_order_are_told_by_layer_0_and_get_queries_in_that_order(tiny_llama, whole, mute, tmp_path):
    recompute(tiny_llama, SavedFile.open(mute(pairs=True, dtype=torch.float16)), tmp_path / "out.safetensors")

    made, words = cuts.read(tmp_path / "out.safetensors")
    expected = cuts.read(whole)[0]
    assert words["rope.interleaved"] == "true"
    for layer in range(4):
        assert made[f"layers.{layer}.q_window"].dtype == torch.float16
        wanted = in_pairs(expected[f"layers.{layer}.q_window"])
        torch.testing.assert_close(made[f"layers.{layer}.q_window"].float(), wanted, atol=2e-2, rtol=2e-2)
        # What a policy scores with is the same product.
        product = made[f"layers.{layer}.q_window"].float()[:2] @ made[f"layers.{layer}.keys"].float()[0].T
        other = expected[f"layers.{layer}.q_window"][:2] @ expected[f"layers.{layer}.keys"][0].T
        torch.testing.assert_close(product, other, atol=5e-2, rtol=5e-2)


def refusal(model, path, tmp_path, **options) -> dkv.DkvError:
    with pytest.raises(dkv.DkvError) as caught:
        recompute(model, SavedFile.open(path), tmp_path / "out.safetensors", **options)
    assert str(caught.value).startswith(f"{path}: ") and not (tmp_path / "out.safetensors").exists()
    return caught.value


def test_what_cannot_be_captured_is_refused_in_one_line(tiny_llama, prompt, whole, mute, tmp_path):
    assert "it has no token ids, and without them no queries" in str(refusal(tiny_llama, mute(tokens=False), tmp_path))
    assert "299 token ids came with 300 tokens" in str(refusal(tiny_llama, mute(), tmp_path, tokens=prompt(299)))
    other = refusal(make_tiny_llama(seed=1), mute(), tmp_path)
    assert other.status == dkv.Status.INVALID_ARGUMENT
    assert "it is no cache of LlamaForCausalLM with these weights: layer 0's rows are 1." in str(other)
    assert "4 layers of 2 KV heads" in str(refusal(make_tiny_llama(layers=5), mute(), tmp_path))
    assert "apart" in str(refusal(tiny_llama, mute(), tmp_path, tokens=prompt(300, seed=1)))
    cut = cuts.cut(whole, tmp_path / "cut.safetensors", lambda layer, head, count: list(range(0, count, 2)))
    assert refusal(tiny_llama, cut, tmp_path).status == dkv.Status.UNSUPPORTED


def test_a_model_whose_queries_cannot_be_seen_is_named(prompt, tmp_path):
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    config = FalconConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = FalconForCausalLM(config).eval()
    with torch.no_grad():
        cache = model(prompt(40), use_cache=True).past_key_values
    dkv.hf.convert(cache, tmp_path / "falcon.safetensors", model=model, tokens=prompt(40))

    error = refusal(model, tmp_path / "falcon.safetensors", tmp_path)

    assert error.status == dkv.Status.UNSUPPORTED
    wanted = "FalconForCausalLM does not attend to the cache's rows through transformers' attention interface"
    assert wanted in str(error) and not (tmp_path / "out.safetensors").exists()


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """The model as `dkv capture` takes it, with a tokenizer, since a folder has one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "tiny-model"
    tiny_llama.save_pretrained(path)
    words = {f"w{index}": index for index in range(512)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))).save_pretrained(path)
    return path


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture
def captured(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DKV_PYTHON", sys.executable)

    def capture(path, *more):
        done = run("capture", folder, path, "-o", tmp_path / "out.safetensors", *more)
        assert [entry for entry in os.listdir(tmp_path) if entry.startswith(".dkv")] == []
        return done

    return capture


@pytest.mark.long
@pytest.mark.e2e
def test_the_command_makes_a_file_that_compacts_as_the_saved_one(whole, mute, captured, tmp_path):
    done = captured(mute())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/out.safetensors: 300 tokens, the queries of the last 32, ")

    kept = []
    for path in (whole, tmp_path / "out.safetensors"):
        small = tmp_path / f"small-{path.name}"
        compacted = run("compact", path, "-o", small, "--policy", "dynamickv", "--capacity", 64)
        assert compacted.returncode == 0, compacted.stderr
        kept.append(cuts.read(small)[0])
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0] if name.endswith("positions"))


class Words:
    """A tokenizer, as far as a replay asks: ids of its instructions."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [7 + len(word) for word in text.split()]}


@pytest.mark.e2e
def test_a_replay_writes_the_scores_that_compact_ranks_by(tiny_llama, mute, prompt, tmp_path):
    out, small, again = tmp_path / "out.safetensors", tmp_path / "small.safetensors", tmp_path / "again.safetensors"

    recompute(tiny_llama, SavedFile.open(mute()), out, replay_with=Words())

    made, words = cuts.read(out)
    ids = prompt(300)[0].tolist()
    scores = replay_scores(tiny_llama, ids, Instruction.of(Words()))["kvzip"]
    for layer, wanted in enumerate(scores):
        torch.testing.assert_close(made[f"layers.{layer}.scores"], wanted, atol=1e-5, rtol=1e-4)
    assert words["provenance.scores"] == "kvzip"
    # One threshold over all heads, as KVzip cuts.
    done = run("compact", out, "-o", small, "--policy", "scores", "--capacity", 64, "--window", 8, "--r-min", 0, "--r-max", 100)
    assert done.returncode == 0, done.stderr
    flat = torch.stack([made[f"layers.{layer}.scores"] for layer in range(4)])[..., :292].flatten()
    best = set(flat.sort(descending=True, stable=True).indices[: 56 * 4 * 2].tolist())
    kept, _ = cuts.read(small)
    for layer in range(4):
        offsets, positions = kept[f"layers.{layer}.head_offsets"].tolist(), kept[f"layers.{layer}.positions"].tolist()
        for head, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            first = (layer * 2 + head) * 292
            assert positions[begin:end] == [t for t in range(292) if first + t in best] + list(range(292, 300))
    assert not any(name.endswith("scores") for name in kept)

    recompute(tiny_llama, SavedFile.open(out), again)  # Without a replay the file does not say that it has scores.
    made, words = cuts.read(again)
    assert "provenance.scores" not in words and "layers.0.scores" not in made


@pytest.mark.e2e
def test_other_formats_are_converted_on_the_way(whole, mute, folder, prompt, tmp_path):
    slot, exported, ids, out = tmp_path / "slot.bin", tmp_path / "x.pt", tmp_path / "ids.json", tmp_path / "out.safetensors"
    turned = {"rope.theta": "10000", "rope.interleaved": "true"}
    made = run("convert", mute(pairs=True, dtype=torch.float16, **turned), "-o", slot, "--format", "llama-slot")
    assert made.returncode == 0, made.stderr
    tensors = cuts.read(whole)[0]
    torch.save([(tensors[f"layers.{layer}.keys"], tensors[f"layers.{layer}.values"]) for layer in range(4)], exported)
    ids.write_text(json.dumps(prompt(300)[0].tolist()))

    assert requery.main([str(folder), str(slot), "-o", str(out)]) == 0
    found, words = cuts.read(out)
    assert words["rope.interleaved"] == "true" and "llama.cpp" in words["provenance.source_format"]
    assert found["layers.3.q_window"].shape == (6, 32, 16) and found["tokens"].tolist() == prompt(300)[0].tolist()

    assert requery.main([str(folder), str(exported), "-o", str(out), "--tokens", str(ids), "--window", "all"]) == 0
    assert cuts.read(out)[0]["layers.3.q_window"].shape == (6, 300, 16)


@pytest.mark.e2e
def test_the_command_s_errors_are_one_line(mute, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DKV_COMMAND", "dkv capture")  # As dkv starts it; in this process, since each start takes seconds.

    def refused(model, path, out=tmp_path / "out.safetensors") -> str:
        arguments = [str(model), str(path), "-o", str(out)]
        assert command.run(lambda: requery.main(arguments)) == 1
        return capsys.readouterr().err

    assert refused(folder, tmp_path / "none") == f"dkv capture: {tmp_path}/none: No such file or directory\n"
    (tmp_path / "noise").write_bytes(os.urandom(500))
    noise = refused(folder, tmp_path / "noise")
    assert noise.count("\n") == 1 and f"{tmp_path}/noise: " in noise
    assert refused(tmp_path / "no-model", mute()) == f"dkv capture: {tmp_path}/no-model is not a folder with a model\n"
    assert refused(folder, mute(), tmp_path / "no" / "out") == f"dkv capture: {tmp_path}/no: no such folder\n"
    with pytest.raises(SystemExit, match="2"):
        requery.main([str(folder), str(mute()), "-o", str(tmp_path / "out"), "--window", "0"])
    assert '--window is 0: a count of tokens, or "all"' in capsys.readouterr().err
