"""Saved prompts: what is written, and what `dkv diff` makes of it."""

import json
import math
import subprocess
import zlib

import cuts
import pytest
import torch
import transformers
from conftest import make_tiny_llama
from fakes import FakeEngine, ragged
from processes import program
from test_cache import greedy
from transformers import AutoModelForCausalLM

import dkv.hf
from dkv.hf import profiles


@pytest.fixture
def saved(tiny_llama, prompt, tmp_path):
    def make(tokens=300, **options):
        path = tmp_path / "prompt.safetensors"
        dkv.hf.save(tiny_llama, prompt(tokens), path, **options)
        return path

    return make


def test_the_whole_cache_is_written_with_the_last_queries(tiny_llama, prompt, saved):
    from safetensors import safe_open

    path = saved(queries=8)

    with torch.no_grad():
        out = tiny_llama(prompt(300))
        cache = out.past_key_values
    with safe_open(path, "pt") as file:
        words = file.metadata()
        assert cuts.unsummed(words) == {
            "format": "dkv",
            "version": "1",
            "model": "LlamaForCausalLM",
            "n_prompt": "300",
            "rope.theta": "10000",
            "rope.interleaved": "false",
            "provenance.next_token": str(int(out.logits[0, -1].argmax())),
            "provenance.model_weights": profiles.describe(tiny_llama)["weights"],
        }
        assert len(file.keys()) == 3 * 4 + 1
        assert file.get_tensor("tokens").tolist() == prompt(300)[0].tolist()
        for name in file.keys():
            assert int(words[f"crc32.{name}"], 16) == zlib.crc32(cuts.bytes_of(file.get_tensor(name))), name
        for index, layer in enumerate(cache.layers):
            torch.testing.assert_close(file.get_tensor(f"layers.{index}.keys"), layer.keys[0])
            torch.testing.assert_close(file.get_tensor(f"layers.{index}.values"), layer.values[0])
            assert file.get_tensor(f"layers.{index}.q_window").shape == (6, 8, 16)
    assert tiny_llama.config._attn_implementation == "sdpa"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def same_file(left, right) -> bool:
    (tensors, words), (others, other_words) = cuts.read(left), cuts.read(right)
    return words == other_words and all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 64}])
def test_the_prompt_of_a_generate_is_saved_as_if_it_had_run_alone(tiny_llama, prompt, saved, tmp_path, options):
    expected = greedy(tiny_llama, prompt(300), 9)
    cache = dkv.hf.Capture(tiny_llama, queries=8)

    assert greedy(tiny_llama, prompt(300), 9, past_key_values=cache, **options) == expected
    size = dkv.hf.save(cache, tmp_path / "captured.safetensors")

    assert size == (tmp_path / "captured.safetensors").stat().st_size
    if not options:
        assert same_file(tmp_path / "captured.safetensors", saved(queries=8))
    else:  # Other shapes of matrices, other roundings.
        tensors, words = cuts.read(tmp_path / "captured.safetensors")
        others, other_words = cuts.read(saved(queries=8))
        assert words["provenance.next_token"] == other_words["provenance.next_token"]
        for name in others:
            torch.testing.assert_close(tensors[name], others[name])


def test_all_queries_are_saved_when_all_are_asked_for(tiny_llama, prompt, saved):
    few, all_of_them = cuts.read(saved(queries=8))[0], cuts.read(saved(queries=None))[0]

    assert all_of_them["layers.3.q_window"].shape == (6, 300, 16)
    assert torch.equal(all_of_them["layers.3.q_window"][:, -8:], few["layers.3.q_window"])


def test_a_capture_begins_again_after_reset(tiny_llama, prompt, saved, tmp_path):
    cache = dkv.hf.Capture(tiny_llama, queries=8)
    greedy(tiny_llama, prompt(40, seed=2), 3, past_key_values=cache)
    cache.reset()
    greedy(tiny_llama, prompt(300), 3, past_key_values=cache)

    dkv.hf.save(cache, tmp_path / "captured.safetensors")

    assert same_file(tmp_path / "captured.safetensors", saved(queries=8))


def test_what_a_live_cache_kept_is_saved_with_its_positions(tiny_llama, prompt, tmp_path):
    live = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=ragged))
    expected = greedy(tiny_llama, prompt(300), 9, past_key_values=live)

    dkv.hf.save(live, tmp_path / "kept.safetensors", tokens=prompt(300))

    tensors, words = cuts.read(tmp_path / "kept.safetensors")
    assert words["provenance.policy"] == "fake" and "layers.0.q_window" not in tensors
    assert tensors["layers.1.positions"].tolist() == [*ragged(1, 0, 300), *ragged(1, 1, 300)]
    loaded = dkv.hf.load(tmp_path / "kept.safetensors", tiny_llama)
    # Without what the whole prompt led to, the first token may be another: the rest follows from it.
    out = dkv.hf.generate(tiny_llama, loaded, torch.tensor([expected[300:301]]), max_new_tokens=8, do_sample=False)
    assert out[0].tolist() == expected


def test_scale_and_softcap_and_rope_are_what_the_model_has(prompt, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, layer_types=["full_attention"] * 4, query_pre_attn_scalar=100,
        attn_logit_softcapping=30.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    path = tmp_path / "gemma.safetensors"

    dkv.hf.save(model, prompt(50), path, queries=4)

    tensors, words = cuts.read(path)
    assert math.isclose(float(words["scale"]), 0.1, rel_tol=1e-6) and float(words["softcap"]) == 30
    assert "layers.3.keys" in tensors


def test_a_rope_that_is_not_plain_is_saved_with_its_scaling(prompt, tmp_path):
    model = make_tiny_llama(rope={"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0})
    path = tmp_path / "scaled.safetensors"

    dkv.hf.save(model, prompt(40), path)

    words = cuts.read(path)[1]
    assert words["rope.theta"] == "20000"
    assert json.loads(words["rope.scaling"]) == {"rope_type": "linear", "factor": 2.0}


def test_what_cannot_be_saved_is_refused_in_one_line(tiny_llama, prompt, tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="the prompt of this cache has not run yet"):
        dkv.hf.save(dkv.hf.Capture(tiny_llama), path)
    with torch.no_grad():
        plain = tiny_llama(prompt(9)).past_key_values
    with pytest.raises(ValueError, match="a DynamicCache has no queries and no model"):
        dkv.hf.save(plain, path)
    cache = dkv.hf.Capture(tiny_llama)
    greedy(tiny_llama, prompt(9), 2, past_key_values=cache)
    with pytest.raises(ValueError, match="8 token ids came with 9 tokens"):
        dkv.hf.save(cache, path, tokens=prompt(8))
    with pytest.raises(dkv.DkvError) as caught:
        dkv.hf.save(cache, tmp_path)
    assert caught.value.status == dkv.Status.ALREADY_EXISTS and str(tmp_path) in str(caught.value)
    with pytest.raises(dkv.DkvError, match="No such file or directory"):
        dkv.hf.save(cache, tmp_path / "no" / "x")
    with pytest.raises(ValueError, match="a batch of 2: one prompt is captured at a time"):
        tiny_llama(prompt(9).expand(2, -1), past_key_values=dkv.hf.Capture(tiny_llama))
    assert list(tmp_path.iterdir()) == []


SMALL = dict(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, bos_token_id=1, eos_token_id=2)
MLA = dict(
    intermediate_size=32, moe_intermediate_size=16, num_key_value_heads=2, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
)  # fmt: skip


FIVE = int(transformers.__version__.split(".")[0]) >= 5
BEFORE_5 = pytest.mark.skipif(not FIVE, reason="transformers 4's takes no logits_to_keep, and says so itself")


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("Falcon", {}, "FalconForCausalLM does not attend to the cache's rows through transformers' attention interface"),
        pytest.param("Bloom", {}, "BloomForCausalLM does not attend to the cache's rows through transformers' attention interface", marks=BEFORE_5),
        ("DeepseekV3", MLA, "DeepseekV3ForCausalLM has multi-head latent attention (MLA): its K and V differ in width"),
        ("Mamba", {}, "MambaForCausalLM takes no past_key_values: it makes a cache of its own" if FIVE else "a cache of a class of its own"),
        (
            "Gemma2", {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 32, "sliding_window": 8},
            "1 of 2 layers of Gemma2ForCausalLM do not keep K and V of every token (layer 0: DynamicSlidingWindowLayer), and "
            "a file has no place for what they keep",
        ),
    ],
)  # fmt: skip
def test_a_model_whose_cache_no_file_can_hold_is_refused_by_name(prompt, tmp_path, kind, more, reason):
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**SMALL | more)).eval()

    with pytest.raises(ValueError) as caught:
        dkv.hf.save(model, prompt(20), tmp_path / "x")

    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_padded_prompt_is_not_saved_as_text(tiny_llama, prompt, tmp_path):
    padded, mask = prompt(20).clone(), torch.ones(1, 20, dtype=torch.long)
    padded[0, :3], mask[0, :3] = 0, 0
    with pytest.raises(ValueError, match=r"the prompt begins with 3 padding tokens \(id 0\): run it without padding"):
        dkv.hf.save(tiny_llama, padded, tmp_path / "x")
    cache = dkv.hf.Capture(tiny_llama)
    tiny_llama.generate(prompt(20), attention_mask=mask, past_key_values=cache, max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError, match="the prompt cannot be saved: the prompt is padded or has a mask of its own"):
        dkv.hf.save(cache, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_use_cache_changes_no_text(tiny_llama, prompt, saved):
    expected = greedy(tiny_llama, prompt(300), 9)
    path = saved()
    tiny_llama.config.use_cache = tiny_llama.generation_config.use_cache = False
    loaded = dkv.hf.load(path, tiny_llama)

    with pytest.raises(ValueError, match="use_cache=False was given with a cache"):
        greedy(tiny_llama, prompt(300), 9, past_key_values=loaded, use_cache=False)
    assert greedy(tiny_llama, prompt(300), 9, past_key_values=loaded) == expected


def test_one_prompt_is_saved_at_a_time(tiny_llama, prompt, tmp_path):
    with pytest.raises(ValueError, match=r"tokens are a dict, not a tensor \[1, n\] of ids"):
        dkv.hf.save(tiny_llama, {"input_ids": prompt(9)}, tmp_path / "x")
    with pytest.raises(ValueError, match=r"tokens are \[1, 0\], not \[1, n\]"):
        dkv.hf.save(tiny_llama, prompt(9)[:, :0], tmp_path / "x")
    with pytest.raises(ValueError, match=r"tokens are \[2, 9\], not \[1, n\]"):
        dkv.hf.save(tiny_llama, prompt(9).expand(2, -1), tmp_path / "x")


def run_dkv(*arguments):
    return subprocess.run([program("dkv"), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.e2e
def test_diff_says_where_the_native_policy_and_the_release_differ(saved):
    found = run_dkv("diff", saved(), "--policy", "dynamickv", "--against", "dynamickv-ref", "--capacity", 64, "--json")

    assert found.returncode == 0, found.stderr
    diff = json.loads(found.stdout)
    assert diff["total"]["a"]["entries"] == 64 * 4 * 2 and diff["total"]["a"]["duplicates"] == 0
    assert diff["a"]["heads_stored"] == 2 and diff["b"]["heads_stored"] == 6
    for layer in [*diff["layers"], diff["total"]]:
        assert layer["shared"] + layer["a"]["only_here"] == 3 * layer["a"]["entries"]
        assert layer["shared"] + layer["b"]["only_here"] + layer["b"]["duplicates"] == layer["b"]["entries"]
        assert 0 < layer["a"]["mass_kept"] <= 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    "form", ["dynamickv-ref", "snapkv-ref", "pyramidkv-ref", "streamingllm-ref", "snapkv-kvpress", "h2o-kvpress"]
)
def test_every_reference_form_runs_from_the_shell(saved, form):
    native = form.split("-")[0]
    found = run_dkv("diff", saved(queries=None), "--policy", native, "--against", form, "--capacity", 64)

    assert found.returncode == 0, found.stderr
    assert f"A {native}: " in found.stdout and f"B {form}: " in found.stdout


@pytest.mark.e2e
def test_what_cannot_be_compared_is_refused_in_one_line(saved, tmp_path):
    def error(*arguments):
        ran = run_dkv("diff", *arguments)
        assert ran.returncode == 1 and ran.stdout == ""
        return ran.stderr

    path = saved(queries=32)
    needs = f"dkv: {path}: h2o needs the queries of the last 300 tokens, and the file has 32\n"
    assert error(path, "--policy", "h2o", "--against", "snapkv", "--capacity", 64) == needs
    assert error(tmp_path / "none", "--against", "snapkv") == f"dkv: {tmp_path}/none: No such file or directory\n"
    path.write_bytes(path.read_bytes()[:1000])
    assert error(path, "--against", "snapkv").startswith(f"dkv: {path}: not safetensors, or cut short: its header")
