"""Every prompt that is not compressed has a reason in its report, and its text is the model's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import make_tiny_llama
from fakes import FakeEngine
from test_cache import greedy, plain
from test_unknown_arguments import TINY, made

import dkv.hf

NO_INTERFACE = "does not attend to the cache's rows through transformers' attention interface"


def report_of(model, tokens, **options) -> dkv.hf.Report:
    expected = greedy(model, tokens, 6, **options)
    cache = dkv.hf.Cache(model, engine=FakeEngine())
    assert greedy(model, tokens, 6, past_key_values=cache, **options) == expected
    assert greedy(model, tokens, 6, **options) == expected
    assert not cache.report().compressed
    return cache.report()


@pytest.mark.parametrize(
    "config, more",
    [
        ("FalconConfig", {"multi_query": True, "alibi": False}),
        ("FalconConfig", {"multi_query": False, "alibi": True}),
        ("BloomConfig", {}),
        ("GPTJConfig", {"n_embd": 64, "n_head": 4, "n_layer": 4, "rotary_dim": 8}),
        ("GPTNeoConfig", {"num_layers": 4, "num_heads": 4, "attention_types": [[["global"], 4]]}),
        ("CodeGenConfig", {"n_embd": 64, "n_head": 4, "n_layer": 4, "rotary_dim": 8}),
        ("XGLMConfig", {"d_model": 64, "attention_heads": 4, "num_layers": 4, "ffn_dim": 96}),
        ("JetMoeConfig", {"kv_channels": 16}),  # Through the interface, but with keys of its own making.
    ],
)
def test_attention_that_dkv_cannot_take_over_is_the_reason(prompt, config, more):
    model = made(config, **more)

    report = report_of(model, prompt(40))

    assert report.failure == f"{type(model).__name__} {NO_INTERFACE}"
    assert report.prompt_tokens == 40


def test_a_model_of_one_layer_is_noticed_when_its_forward_is_over(prompt):
    model = made("FalconConfig", multi_query=True, alibi=False, num_hidden_layers=1)
    cache = dkv.hf.Cache(model, engine=FakeEngine())

    with torch.no_grad():
        model(prompt(40), past_key_values=cache)

    assert cache.report().failure == f"FalconForCausalLM {NO_INTERFACE}"


@pytest.mark.parametrize(
    "config, more, words",
    [
        ("MiniMaxConfig", {"num_local_experts": 2, "block_size": 16}, "has a cache of a class of its own"),
        ("MambaConfig", {"state_size": 8}, "of its own"),
        ("OpenAIGPTConfig", {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 2048}, "takes no past_key_values"),
    ],
)
def test_models_with_a_cache_of_their_own_run_as_if_given_none(prompt, config, more, words):
    assert words in report_of(made(config, **more), prompt(40)).failure


def whisper():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=20,
        max_target_positions=60, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def test_an_encoder_decoder_runs_as_if_given_no_cache():
    model, features = whisper(), torch.randn(1, 8, 40)
    expected = model.generate(features, max_new_tokens=8, do_sample=False)
    cache = dkv.hf.Cache(model, engine=FakeEngine())

    out = model.generate(features, max_new_tokens=8, do_sample=False, past_key_values=cache)

    assert torch.equal(out, expected)
    assert "is an encoder-decoder" in cache.report().failure
    assert dkv.hf.Capture(model).refusal == cache.report().failure


@pytest.mark.skipif(transformers.__version__ < "5", reason="in transformers 4 Qwen3-Next has a cache class of its own")
def test_hybrids_keep_their_other_layers_and_need_no_policy(prompt):
    """An unnamed policy looks for a profile, which hybrids cannot have."""
    model, tokens = made("Qwen3NextConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                         shared_expert_intermediate_size=32, linear_num_value_heads=4, linear_num_key_heads=2,
                         linear_key_head_dim=8, linear_value_head_dim=8), prompt(40)  # fmt: skip
    keeps_all = FakeEngine(keep=lambda layer, head, count: list(range(count)))
    expected = greedy(model, tokens, 6)
    cache = dkv.hf.Cache(model, engine=keeps_all)

    assert greedy(model, tokens, 6, past_key_values=cache) == expected
    assert cache.report().compressed and cache.report().layers_left_alone == 3


@pytest.mark.parametrize("layers", [4, 6, 2])
def test_another_model_than_the_cache_s_is_the_reason(tiny_llama, prompt, layers):
    other, tokens = make_tiny_llama(seed=1, layers=layers), prompt(40)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    out = greedy(other, tokens, 8, past_key_values=cache)

    assert out == plain(other, tokens, 8)
    assert cache.report().failure.startswith("the cache was made for another model than that of this LlamaAttention")


def test_a_reset_cache_of_such_a_model_has_its_reason_still(prompt):
    cache = dkv.hf.Cache(made("MiniMaxConfig", num_local_experts=2, block_size=16), engine=FakeEngine())

    cache.reset()

    assert "class of its own" in cache.report().failure


def test_what_differs_between_k_and_v_is_named(tiny_llama, prompt):
    tokens = prompt(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = report_of(tiny_llama, tokens)
    assert report.failure == (
        "K is torch.float32 and V is torch.bfloat16 (as under torch.autocast): they must have one dtype"
    )
    latent = dict(num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=16,
                  v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
                  moe_intermediate_size=32, first_k_dense_replace=1)  # fmt: skip
    found = report_of(made("DeepseekV3Config", **latent), tokens).failure
    assert "(as in multi-head latent attention): they must have one shape" in found and "K is [1, " in found


def test_a_prompt_of_one_token_is_none_to_compress(tiny_llama, prompt):
    assert report_of(tiny_llama, prompt(1)).kept_whole == "a prompt of one token: nothing to compress"


SCRIPT = f"""
import torch, transformers
from transformers import AutoModelForCausalLM
ids = torch.arange(2, 302)[None]
for kind, config, more in [
    ("MiniMaxConfig", dict(num_local_experts=2, block_size=16), {{}}),
    ("DiffLlamaConfig", {{}}, {{}}),
    ("LlamaConfig", dict(attn_implementation="eager"), dict(output_attentions=True, return_dict_in_generate=True)),
]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**({TINY!r} | config))).eval()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, **more)
    print([len(each) for each in out.attentions] if more else out[0, 300:].tolist())
"""


@pytest.mark.long
@pytest.mark.e2e
def test_a_script_says_the_same_under_the_runner_and_its_report_says_why(tmp_path, sidecar):
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(SCRIPT)

    def ran(*command) -> str:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = ran(script)
    under = ran("-m", "dkv.hf", "--policy", "snapkv", "--capacity", "64", "--endpoint", sidecar.endpoint, "--report", report, script)

    assert under == alone and under.count("\n") == 3
    failures = [each["failure"] for each in json.loads(report.read_text())]
    five = int(transformers.__version__.split(".")[0]) >= 5  # Before, DiffLlama's attention was all its own.
    differs = "changes K or V" if five else NO_INTERFACE
    for failure, words in zip(failures, ("class of its own", differs, "output_attentions=True"), strict=True):
        assert words in failure
