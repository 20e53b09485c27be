"""Saved caches taken up again: whole, cut by hand, and compacted by the real program."""

from __future__ import annotations

import os
import subprocess

import cuts
import pytest
import torch
from fakes import FakeEngine, last_and_every_third, ragged
from processes import program
from test_cache import greedy
from test_smollm2 import document  # noqa: F401

import dkv.hf

NEW = 12


@pytest.fixture
def saved(tiny_llama, prompt, tmp_path):
    path = tmp_path / "prompt.safetensors"
    dkv.hf.save(tiny_llama, prompt(300), path, queries=8)
    return path


def texts_of(tiny_llama, prompt, keep) -> list[int]:
    """What the live cache generates when a sidecar keeps these rows."""
    live = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=keep))
    tokens = new_text(tiny_llama, prompt(300), past_key_values=live)
    assert live.report().compressed, live.report().failure
    return tokens


def new_text(model, tokens, count: int = NEW, **options) -> list[int]:
    return greedy(model, tokens, count, **options)[tokens.shape[1] :]


def loaded_text(model, cache, count: int = NEW, tokens=None, **options) -> list[int]:
    out = dkv.hf.generate(model, cache, tokens, max_new_tokens=count, do_sample=False, **options)
    return out[0, cache.n_prompt + (0 if tokens is None else tokens.shape[1]) :].tolist()


def test_a_whole_file_goes_on_as_if_the_prompt_had_just_run(tiny_llama, prompt, saved):
    expected = new_text(tiny_llama, prompt(300), NEW)

    cache = dkv.hf.load(saved, tiny_llama)

    assert cache.get_seq_length() == cache.n_prompt == 300
    assert loaded_text(tiny_llama, cache) == expected
    assert cache.kept_positions(1) == [list(range(300))] * 2


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
def test_a_compacted_file_goes_on_token_for_token_as_the_live_cache(tiny_llama, prompt, saved, tmp_path, keep):
    expected = texts_of(tiny_llama, prompt, keep)

    cache = dkv.hf.load(cuts.cut(saved, tmp_path / "cut.safetensors", keep), tiny_llama)

    assert cache.get_seq_length() == 300
    assert cache.kept_positions(2) == [keep(2, head, 300) for head in range(2)]
    assert loaded_text(tiny_llama, cache) == expected


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
def test_a_question_behind_a_loaded_prompt_is_answered_as_by_the_live_cache(tiny_llama, prompt, saved, tmp_path, keep):
    question = prompt(20, seed=9)
    live = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=keep))
    with torch.no_grad():
        tiny_llama(prompt(300), past_key_values=live, logits_to_keep=1)
    whole = torch.cat([prompt(300), question], dim=1)
    expected = new_text(tiny_llama, whole, NEW, past_key_values=live)

    cache = dkv.hf.load(cuts.cut(saved, tmp_path / "cut.safetensors", keep), tiny_llama)

    assert loaded_text(tiny_llama, cache, tokens=question) == expected


def test_the_model_s_own_generate_takes_a_loaded_cache_too(tiny_llama, prompt, saved):
    expected = new_text(tiny_llama, prompt(300), NEW)

    assert new_text(tiny_llama, prompt(300), NEW, past_key_values=dkv.hf.load(saved, tiny_llama)) == expected


def test_asking_the_last_token_again_adds_no_row(tiny_llama, prompt, saved, tmp_path):
    cache = dkv.hf.load(cuts.cut(saved, tmp_path / "cut.safetensors", ragged), tiny_llama)

    loaded_text(tiny_llama, cache, 1)

    assert cache.get_seq_length() == 300
    assert [layer.get_seq_length() for layer in cache.layers] == [300] * 4


def test_without_the_next_token_the_last_query_is_asked_over_what_was_kept(tiny_llama, prompt, saved, tmp_path):
    keep = last_and_every_third
    cut = cuts.cut(saved, tmp_path / "cut.safetensors", keep)
    tensors, words = cuts.read(cut)
    told = int(words.pop("provenance.next_token"))
    other = (told + 1) % 512
    words = cuts.unsummed(words)
    cuts.write(tmp_path / "silent.safetensors", tensors, words, crcs=False)
    cuts.write(tmp_path / "told.safetensors", tensors, words | {"provenance.next_token": str(other)}, crcs=False)

    silent = dkv.hf.load(tmp_path / "silent.safetensors", tiny_llama)
    lied = dkv.hf.load(tmp_path / "told.safetensors", tiny_llama)

    assert silent.next_token is None
    assert loaded_text(tiny_llama, lied, 1) == [other]
    # The kept rows of this prompt alone, by plain attention under a mask.
    assert loaded_text(tiny_llama, silent, 1) == [masked_argmax(tiny_llama, prompt(300), keep)]


def masked_argmax(model, tokens, keep) -> int:
    """The last token asked alone, over whole K and V, with all but the kept positions hidden layer by layer."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model(tokens, past_key_values=cache)
        count = tokens.shape[1]
        for index, layer in enumerate(cache.layers):
            rows = [keep(index, head, count) for head in range(layer.keys.shape[1])]
            layer.keys = torch.stack([layer.keys[0, head, kept[:-1]] for head, kept in enumerate(rows)])[None]
            layer.values = torch.stack([layer.values[0, head, kept[:-1]] for head, kept in enumerate(rows)])[None]
        position = torch.tensor([[count - 1]])
        return int(model(tokens[:, -1:], past_key_values=cache, position_ids=position).logits[0, -1].argmax())


def test_the_last_row_is_not_recomputed_and_stays_as_it_was_saved(tiny_llama, prompt, saved, tmp_path):
    cut = cuts.cut(saved, tmp_path / "cut.safetensors", last_and_every_third)
    cache = dkv.hf.load(cut, tiny_llama)

    loaded_text(tiny_llama, cache, 3)

    tensors, _ = cuts.read(cut)
    for index, layer in enumerate(cache.layers):
        assert torch.equal(layer.prefix.keys, tensors[f"layers.{index}.keys"])


def test_a_file_without_tokens_asks_for_the_prompt(tiny_llama, prompt, saved, tmp_path):
    expected = new_text(tiny_llama, prompt(300), NEW)
    tensors, words = cuts.read(saved)
    del tensors["tokens"]
    path = cuts.write(tmp_path / "no-tokens.safetensors", tensors, cuts.unsummed(words))

    cache = dkv.hf.load(path, tiny_llama)

    with pytest.raises(ValueError, match=r"no-tokens.safetensors has no token ids: give prompt="):
        dkv.hf.generate(tiny_llama, cache, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"prompt is \[1, 299\], not \[1, 300\]"):
        dkv.hf.generate(tiny_llama, cache, prompt=prompt(299), max_new_tokens=2)
    assert loaded_text(tiny_llama, cache, prompt=prompt(300)) == expected


def test_fewer_ids_than_the_cache_holds_are_an_error_and_no_wrong_text(tiny_llama, prompt, saved):
    cache = dkv.hf.load(saved, tiny_llama)

    with pytest.raises(ValueError, match=r"generate\(\) was given 20 tokens, and the cache has 300 already"):
        tiny_llama.generate(prompt(20), past_key_values=cache, max_new_tokens=2)
    loaded_text(tiny_llama, cache, 4)
    with pytest.raises(ValueError, match=r"was given 300 tokens, and the cache has 303 already"):
        tiny_llama.generate(prompt(300), past_key_values=cache, max_new_tokens=2)


def test_a_loaded_text_goes_on_over_several_turns(tiny_llama, prompt, saved):
    turns = [prompt(300), prompt(10, seed=3)]
    expected = new_text(tiny_llama, turns[0], 5)
    longer = torch.cat([turns[0], torch.tensor([expected]), turns[1]], dim=1)
    second = new_text(tiny_llama, longer, 5)

    cache = dkv.hf.load(saved, tiny_llama)
    out = dkv.hf.generate(tiny_llama, cache, max_new_tokens=5, do_sample=False)
    again = tiny_llama.generate(torch.cat([out, turns[1]], dim=1), past_key_values=cache, max_new_tokens=5, do_sample=False)

    assert again[0, longer.shape[1] :].tolist() == second


def test_keys_in_llama_cpp_s_order_of_dims_are_put_into_ours(tiny_llama, prompt, saved, tmp_path):
    expected = new_text(tiny_llama, prompt(300), NEW)
    tensors, words = cuts.read(saved)
    for name in tensors:
        if name.endswith(".keys"):
            first, second = tensors[name].chunk(2, dim=-1)
            tensors[name] = torch.stack([first, second], dim=-1).flatten(-2)
    words = cuts.unsummed(words)
    path = cuts.write(tmp_path / "pairs.safetensors", tensors, words | {"rope.interleaved": "true"})

    assert loaded_text(tiny_llama, dkv.hf.load(path, tiny_llama)) == expected


def test_keys_of_an_order_that_is_not_known_are_refused(tiny_llama, saved, tmp_path):
    tensors, words = cuts.read(saved)
    path = cuts.write(tmp_path / "x.safetensors", tensors, cuts.unsummed(words) | {"rope.interleaved": "unknown"})

    error = refusal(path, tiny_llama)
    assert error.status == dkv.Status.UNSUPPORTED
    assert "in which order its keys' dims are is not known: dkv capture finds it out" in str(error)


def test_a_model_that_turns_pairs_itself_says_so_and_gets_its_keys_as_they_are(prompt, tmp_path):
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = CohereForCausalLM(config).eval()
    expected = new_text(model, prompt(100) % 512, NEW)
    path = tmp_path / "cohere.safetensors"
    dkv.hf.save(model, prompt(100) % 512, path)
    tensors, words = cuts.read(path)

    assert words["rope.interleaved"] == words["rope.model_interleaved"] == "true"
    assert loaded_text(model, dkv.hf.load(path, model)) == expected
    for name in tensors:
        if name.endswith(".keys"):
            tensors[name] = torch.cat([tensors[name][..., 0::2], tensors[name][..., 1::2]], dim=-1)
    halves = cuts.write(tmp_path / "halves.safetensors", tensors, cuts.unsummed(words) | {"rope.interleaved": "false"})
    assert loaded_text(model, dkv.hf.load(halves, model)) == expected


def test_a_loaded_cache_can_be_saved_again(tiny_llama, prompt, saved, tmp_path):
    cut = cuts.cut(saved, tmp_path / "cut.safetensors", ragged)
    expected = loaded_text(tiny_llama, dkv.hf.load(cut, tiny_llama))

    dkv.hf.save(dkv.hf.load(cut, tiny_llama), tmp_path / "again.safetensors")

    assert loaded_text(tiny_llama, dkv.hf.load(tmp_path / "again.safetensors", tiny_llama)) == expected
    before, after = cuts.read(cut)[0], cuts.read(tmp_path / "again.safetensors")[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def refusal(path, model) -> dkv.DkvError:
    with pytest.raises(dkv.DkvError) as caught:
        dkv.hf.load(path, model)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return caught.value


def test_a_flipped_bit_is_found_and_named(tiny_llama, saved, tmp_path):
    cut = cuts.cut(saved, tmp_path / "cut.safetensors", ragged)
    tensors, _ = cuts.read(cut)
    data = bytearray(cut.read_bytes())
    data[data.index(cuts.bytes_of(tensors["layers.2.values"])) + 100] ^= 4
    cut.write_bytes(data)

    error = refusal(cut, tiny_llama)

    assert error.status == dkv.Status.CORRUPT_DATA
    assert "the checksum of layers.2.values is" in str(error) and "the file is damaged" in str(error)


def test_another_model_s_cache_is_refused(saved, tmp_path):
    from conftest import make_tiny_llama

    error = refusal(saved, make_tiny_llama(layers=3))
    assert error.status == dkv.Status.INVALID_ARGUMENT
    words = "it has 4 layers of 2 KV heads of 16, and LlamaForCausalLM has 3 of 2 of 16"
    assert str(error) == f"{saved}: {words}"
    assert "4 layers of 2 KV heads of 16" in str(refusal(saved, make_tiny_llama(kv_heads=3)))
    tensors, words = cuts.read(saved)
    path = cuts.write(tmp_path / "theta.safetensors", tensors, cuts.unsummed(words) | {"rope.theta": "500000"})
    assert "its keys were turned with theta 500000, and those of LlamaForCausalLM with 10000" in str(
        refusal(path, make_tiny_llama())
    )


def test_what_is_no_cache_of_ours_is_refused_in_one_line(tiny_llama, saved, tmp_path):
    tensors, words = cuts.read(saved)
    words = cuts.unsummed(words)

    def changed(tensors=tensors, **more):
        return refusal(cuts.write(tmp_path / "x.safetensors", tensors, words | more, crcs=False), tiny_llama)

    assert "No such file or directory" in str(refusal(tmp_path / "none", tiny_llama))
    assert "it is a directory" in str(refusal(tmp_path, tiny_llama))
    os.mkfifo(tmp_path / "fifo")
    assert "it is no regular file" in str(refusal(tmp_path / "fifo", tiny_llama))
    (tmp_path / "text").write_text("hello, this is no cache at all")
    assert "it is no safetensors file" in str(refusal(tmp_path / "text", tiny_llama))
    assert changed(version="3").status == dkv.Status.UNSUPPORTED
    assert 'its metadata has no format "dkv"' in str(changed(format="hf"))
    assert "n_prompt is many, no count" in str(changed(n_prompt="many"))
    assert "has 300 rows of 301 tokens, and there are no positions" in str(
        changed({name: each for name, each in tensors.items() if name != "tokens"}, n_prompt="301")
    )
    assert "the metadata has checksums, but none of the header" in str(changed(**{"crc32.tokens": "00000000"}))
    assert "the checksum of the header is" in str(changed(crc32="00000000"))
    sealed = cuts.write(tmp_path / "y", tensors, words | {"scale": "0.5"})
    sealed.write_bytes(sealed.read_bytes().replace(b'"scale":"0.5"', b'"scale":"0.6"'))
    assert "the checksum of the header is" in str(refusal(sealed, tiny_llama))
    unsorted = cuts.read(cuts.cut(saved, tmp_path / "cut", ragged))[0]
    unsorted["layers.1.positions"][3] = unsorted["layers.1.positions"][2]
    assert "layers.1.positions are not ascending within 0 … 299" in str(changed(unsorted))
    short = cuts.read(tmp_path / "cut")[0]
    short["layers.0.head_offsets"][2] += 1
    assert "layers.0.head_offsets" in str(changed(short))


@pytest.mark.parametrize("part", range(1, 64, 7))
def test_a_truncated_file_is_refused(tiny_llama, saved, part):
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) * part // 64])

    assert refusal(saved, tiny_llama).status == dkv.Status.CORRUPT_DATA


def test_a_model_with_sliding_windows_cannot_go_on_from_a_file(tiny_llama, saved):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8,
    )  # fmt: skip
    error = refusal(saved, Gemma3ForCausalLM(config).eval())

    assert error.status == dkv.Status.UNSUPPORTED
    assert "5 of 6 layers of Gemma3ForCausalLM do not keep K and V of every token (layer 0: DynamicSlidingWindowLayer)" in str(error)


def run_dkv(*arguments) -> subprocess.CompletedProcess:
    done = subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.e2e
@pytest.mark.parametrize("policy", ["dynamickv", "pyramidkv", "streamingllm", "auto"])
def test_save_compact_load_is_what_the_live_sidecar_generates(tiny_llama, prompt, saved, tmp_path, sidecar, policy):
    live = dkv.hf.Cache(tiny_llama, policy=policy, capacity=48, window=8, endpoint=sidecar.endpoint, timeout_s=60)
    expected = new_text(tiny_llama, prompt(300), past_key_values=live)
    assert live.report().compressed, live.report().failure

    small = tmp_path / "small.safetensors"
    run_dkv("compact", saved, "-o", small, "--policy", policy, "--capacity", 48, "--window", 8)
    cache = dkv.hf.load(small, tiny_llama)

    assert [cache.kept_positions(layer) for layer in range(4)] == [live.kept_positions(layer) for layer in range(4)]
    assert loaded_text(tiny_llama, cache) == expected
    assert cache.provenance["policy"] == live.report().policy


@pytest.mark.e2e
def test_ragged_heads_come_back_from_the_real_program_as_they_were_live(tiny_llama, prompt, saved, tmp_path, sidecar):
    options = {"policy": "dynamickv", "capacity": 48, "window": 8, "granularity": "head"}
    live = dkv.hf.Cache(tiny_llama, **options, endpoint=sidecar.endpoint, timeout_s=60)
    expected = new_text(tiny_llama, prompt(300), past_key_values=live)
    assert live.report().compressed, live.report().failure

    small = tmp_path / "small.safetensors"
    run_dkv("compact", saved, "-o", small, *(word for key, value in options.items() for word in (f"--{key}", value)))
    cache = dkv.hf.load(small, tiny_llama)

    assert any(len(set(map(len, cache.kept_positions(layer)))) > 1 for layer in range(4))
    assert loaded_text(tiny_llama, cache) == expected


@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.model
def test_smollm2_goes_on_from_a_compacted_document_as_with_the_live_sidecar(smollm2, document, tmp_path, sidecar):  # noqa: F811
    model, _ = smollm2
    torch.set_num_threads(min(4, os.cpu_count() or 1))
    tokens, whole, small = document(1200), tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    live = dkv.hf.Cache(model, policy="dynamickv", capacity=320, endpoint=sidecar.endpoint, timeout_s=120)
    expected = new_text(model, tokens, 32, past_key_values=live)
    assert live.report().compressed, live.report().failure
    model.set_attn_implementation("sdpa")

    dkv.hf.save(model, tokens, whole)
    run_dkv("compact", whole, "-o", small, "--policy", "dynamickv", "--capacity", 320)
    cache = dkv.hf.load(small, model)

    assert sum(map(len, cache.kept_positions(0))) > 0 and cache.get_seq_length() == 1200
    assert [live.kept_positions(layer) for layer in range(30)] == [cache.kept_positions(layer) for layer in range(30)]
    assert loaded_text(model, cache, 32) == expected
    assert small.stat().st_size < 0.3 * whole.stat().st_size


@pytest.mark.e2e
@pytest.mark.model
@pytest.mark.parametrize("policy", [None, pytest.param("reuse", marks=pytest.mark.long)])
def test_smollm2_keeps_of_a_file_what_it_keeps_live_with_its_own_profile(smollm2, document, tmp_path, sidecar, policy):  # noqa: F811
    model, _ = smollm2
    tokens, whole, small = document(700), tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    live = dkv.hf.Cache(model, policy=policy, capacity=128, endpoint=sidecar.endpoint, timeout_s=120)
    expected = new_text(model, tokens, 8, past_key_values=live)
    assert live.report().compressed, live.report().failure
    model.set_attn_implementation("sdpa")

    dkv.hf.save(model, tokens, whole)
    run_dkv("compact", whole, "-o", small, *(["--policy", policy] if policy else []), "--capacity", 128)
    cache = dkv.hf.load(small, model)

    assert cache.provenance["policy"] == live.report().policy == (policy or "auto")
    assert cache.provenance["profile"] == "smollm2-135m-instruct"
    assert [live.kept_positions(layer) for layer in range(30)] == [cache.kept_positions(layer) for layer in range(30)]
    assert loaded_text(model, cache, 8) == expected
