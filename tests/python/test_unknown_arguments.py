"""What a model gives its attention and dkv does not understand keeps the prompt whole, by name."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import make_tiny_llama
from fakes import FakeEngine, last_and_every_third, ragged
from test_cache import greedy, logits_of_masked_model, step_by_step

import dkv.hf

TINY = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2, pad_token_id=0, bos_token_id=1,
    eos_token_id=None,
)  # fmt: skip


def made(config: str, **more):
    torch.manual_seed(0)
    if not hasattr(transformers, config):
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**(TINY | more))).eval()


def refusal(model, tokens, **options) -> str:
    """The reason of a prompt that is kept whole and answered by the model's own attention."""
    with torch.no_grad():
        expected = model(tokens, use_cache=True, **options).logits
        cache = dkv.hf.Cache(model, engine=FakeEngine())
        found = model(tokens, past_key_values=cache, **options).logits
    assert torch.equal(found, expected)
    assert not cache.report().compressed
    return cache.report().failure


def test_an_argument_with_a_value_is_refused_by_name_and_reaches_the_model(tiny_llama, prompt):
    tokens, bias = prompt(30), torch.randn(1, 6, 30, 30)
    if int(transformers.__version__.split(".")[0]) >= 5:  # Before, sdpa took no such argument, and dropped it.
        assert not torch.equal(tiny_llama(tokens, position_bias=bias).logits, tiny_llama(tokens).logits)

    named = "the attention of LlamaAttention is given position_bias, which dkv does not understand"
    assert refusal(tiny_llama, tokens, position_bias=bias) == named
    assert refusal(tiny_llama, tokens, something=0).startswith("the attention of LlamaAttention is given something")
    assert "is_causal=False" in refusal(tiny_llama, tokens, is_causal=False)
    assert "sliding_window 16: only layers" in refusal(tiny_llama, tokens, sliding_window=16)


def test_an_argument_without_a_value_hinders_nothing(tiny_llama, prompt):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    with torch.no_grad():
        tiny_llama(prompt(30), past_key_values=cache, position_bias=None, sliding_window=8192)

    assert cache.report().compressed


def test_an_argument_that_comes_after_the_prompt_was_compressed_is_refused(tiny_llama, prompt):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    with torch.no_grad():
        tiny_llama(prompt(30), past_key_values=cache)

        with pytest.raises(ValueError, match="layer 0 is compressed: the attention of LlamaAttention is given position_bias"):
            tiny_llama(prompt(1), past_key_values=cache, position_bias=torch.zeros(1, 6, 1, 31))


def test_masks_that_are_not_causal_or_weigh_are_refused(tiny_llama, prompt):
    tokens, causal = prompt(30), torch.ones(30, 30, dtype=torch.bool).tril()[None, None]
    both_ways = causal | (torch.arange(30) < 8)
    weighing = torch.zeros(1, 1, 30, 30).masked_fill(~causal, float("-inf")) - 0.5 * (torch.arange(30) % 2) * causal

    assert refusal(tiny_llama, tokens, attention_mask=both_ways) == "the prompt is padded or has a mask of its own"
    assert refusal(tiny_llama, tokens, attention_mask=weighing).startswith("the mask adds numbers to the logits")
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    with torch.no_grad():
        tiny_llama(tokens, attention_mask=causal, past_key_values=cache)
        assert cache.report().compressed
        hides = torch.ones(1, 1, 1, 31, dtype=torch.bool)
        hides[..., 3] = False
        with pytest.raises(ValueError, match="the prompt is compressed, and the mask hides or weighs tokens of it"):
            tiny_llama(prompt(1), attention_mask=hides, past_key_values=cache)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_attention_that_computes_something_else_is_found_by_its_result(tiny_llama, prompt, factor):
    """Nothing in the arguments tells that the function has a temperature of its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def tempered(module, query, *args, **kwargs):
        return sdpa_attention_forward(module, query * factor, *args, **kwargs)

    AttentionInterface.register("dkv_test_tempered", tempered)
    AttentionMaskInterface.register("dkv_test_tempered", sdpa_mask)
    tiny_llama.set_attn_implementation("dkv_test_tempered")

    if factor != 1:
        assert "LlamaAttention is not softmax(scale · QK) · V: its result is" in refusal(tiny_llama, prompt(30))
        return
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    greedy(tiny_llama, prompt(30), 2, past_key_values=cache)
    assert cache.report().compressed


def test_dropout_is_refused(prompt):
    model = make_tiny_llama()
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    cache = dkv.hf.Cache(model.train(), engine=FakeEngine())

    with torch.no_grad():
        model(prompt(30), past_key_values=cache)

    assert cache.report().failure == "the attention of LlamaAttention has a dropout of 0.1: only 0 is compressed (call model.eval())"


@pytest.mark.parametrize(
    "config, words",
    [
        ("DiffLlamaConfig", ("changes K or V", "does not attend")),  # Two calls of attention, each with half of V.
        ("DogeConfig", ("the mask adds numbers", "a mask of its own")),  # A mask made from V.
    ],
)
def test_models_with_attention_of_another_kind_keep_their_text(prompt, config, words):
    model, tokens = made(config), prompt(60)
    expected = greedy(model, tokens, 8)
    cache = dkv.hf.Cache(model, engine=FakeEngine())

    assert greedy(model, tokens, 8, past_key_values=cache) == expected
    assert any(each in cache.report().failure for each in words)
    capture = dkv.hf.Capture(model)
    assert greedy(model, tokens, 8, past_key_values=capture) == expected
    with pytest.raises(ValueError, match="the prompt cannot be saved: "):
        dkv.hf.save(capture, "never-written.safetensors")


def with_sinks():
    """gpt-oss, all of whose layers see everything, with sinks that count."""
    model = made("GptOssConfig", head_dim=16, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.tensor([3.0, 0.0, -1.0, 6.0]))
    return model


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
def test_sinks_stay_in_the_softmax_of_a_compressed_prompt(prompt, keep):
    model, tokens = with_sinks(), prompt(70)
    engine = FakeEngine(keep=keep)
    cache = dkv.hf.Cache(model, engine=engine)

    logits = step_by_step(model, cache, tokens, 60)

    assert cache.report().compressed, cache.report().failure
    torch.testing.assert_close(logits, logits_of_masked_model(model, tokens, cache, 60), atol=1e-4, rtol=1e-4)
    assert engine.sessions[0].sinks == [[3.0, 0.0, -1.0, 6.0]] * 4


def test_a_capture_remembers_the_sinks(prompt):
    model = with_sinks()
    cache = dkv.hf.Capture(model)

    greedy(model, prompt(40), 2, past_key_values=cache)

    assert cache.refusal is None
    assert [layer.sink_logits.tolist() for layer in cache.captured] == [[3.0, 0.0, -1.0, 6.0]] * 4
