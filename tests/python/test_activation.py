"""A model's own attention is as before while a dkv cache exists, beside one, and after one."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import torch
from conftest import make_tiny_llama
from fakes import FakeEngine
from test_cache import greedy

import dkv.hf

KEEPS_ALL = FakeEngine(keep=lambda layer, head, tokens: list(range(tokens)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_cache_leaves_the_model_s_attention_as_it_is(tiny_llama, prompt, implementation):
    tiny_llama.set_attn_implementation(implementation)
    tokens, padded = prompt(40), torch.ones(2, 40, dtype=torch.long)
    padded[1, :7] = 0
    options = {"attention_mask": padded, "max_new_tokens": 12, "do_sample": False}
    expected, batch = greedy(tiny_llama, tokens, 12), tiny_llama.generate(tokens.repeat(2, 1), **options)
    keys = set(vars(tiny_llama.config))

    cache, capture = dkv.hf.Cache(tiny_llama, engine=FakeEngine()), dkv.hf.Capture(tiny_llama)
    greedy(tiny_llama, tokens, 4, past_key_values=cache)
    greedy(tiny_llama, tokens, 4, past_key_values=capture)

    assert cache.report().compressed and capture.failure is None
    for _ in range(2):
        assert tiny_llama.config._attn_implementation == implementation and set(vars(tiny_llama.config)) == keys
        assert greedy(tiny_llama, tokens, 12) == expected
        assert torch.equal(tiny_llama.generate(tokens.repeat(2, 1), **options), batch)
        del cache, capture  # Also when they are gone.
        gc.collect()
        cache = capture = None


def test_attention_weights_are_the_model_s_own_and_keep_a_prompt_whole(tiny_llama, prompt):
    tiny_llama.set_attn_implementation("eager")
    tokens = prompt(40)
    expected = tiny_llama(tokens, output_attentions=True).attentions
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    found = tiny_llama(tokens, output_attentions=True, past_key_values=cache).attentions

    assert len(found) == 4 and all(torch.equal(*pair) for pair in zip(found, expected))
    assert cache.report().failure.startswith("output_attentions=True: a compressed layer has no attention weights")
    assert len(tiny_llama(tokens, output_attentions=True).attentions) == 4


def test_attention_weights_of_a_compressed_prompt_are_refused(tiny_llama, prompt):
    tiny_llama.set_attn_implementation("eager")
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    with torch.no_grad():
        tiny_llama(prompt(40), past_key_values=cache)

        with pytest.raises(ValueError, match="layer 0 is compressed: output_attentions=True"):
            tiny_llama(prompt(1), past_key_values=cache, output_attentions=True)


def test_weights_that_the_model_does_not_have_hinder_no_compression(tiny_llama, prompt):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    with torch.no_grad():
        tiny_llama(prompt(40), past_key_values=cache, output_attentions=True)
        tiny_llama(prompt(1), past_key_values=cache, output_attentions=True)

    assert cache.report().compressed


def test_one_thread_s_cache_is_nothing_to_another_s(tiny_llama, prompt):
    tiny_llama.set_attn_implementation("eager")
    tokens, found, done = prompt(60), [], threading.Event()
    expected = greedy(tiny_llama, tokens, 8)

    def plainly():
        while not done.is_set() or not found:
            found.append(greedy(tiny_llama, tokens, 8))

    thread = threading.Thread(target=plainly)
    thread.start()
    try:
        for _ in range(5):
            cache = dkv.hf.Cache(tiny_llama, engine=KEEPS_ALL)
            assert greedy(tiny_llama, tokens, 8, past_key_values=cache) == expected
            assert cache.report().compressed
    finally:
        done.set()
        thread.join()
    assert all(text == expected for text in found)


def test_a_model_is_copied_and_saved_as_before(tiny_llama, prompt, tmp_path):
    tokens = prompt(40)
    expected = greedy(tiny_llama, tokens, 8)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    greedy(tiny_llama, tokens, 2, past_key_values=cache)

    tiny_llama.save_pretrained(tmp_path)
    loaded = type(tiny_llama).from_pretrained(tmp_path)
    for other in (copy.deepcopy(tiny_llama), pickle.loads(pickle.dumps(tiny_llama)), loaded):
        assert greedy(other, tokens, 8) == expected
        assert other.generate.__self__ is other
        of_other = dkv.hf.Cache(other, engine=FakeEngine())
        greedy(other, tokens, 2, past_key_values=of_other)
        assert of_other.report().compressed


def test_another_function_may_be_registered_while_a_cache_lives(tiny_llama, prompt):
    """The lookup asks dkv first and then whatever stands there now."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    calls = []

    def counted(module, *args, **kwargs):
        calls.append(module.layer_idx)
        return sdpa_attention_forward(module, *args, **kwargs)

    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    AttentionInterface.register("dkv_test_counted", counted)
    tiny_llama.set_attn_implementation("dkv_test_counted")

    greedy(tiny_llama, prompt(40), 4, past_key_values=cache)

    assert calls == [0, 1, 2, 3]  # The prompt's; then the layers are compressed.
    assert cache.report().compressed


@pytest.mark.long
def test_a_compiled_model_keeps_its_prompt_whole_and_says_so(prompt):
    model = make_tiny_llama(layers=2)
    tokens = prompt(24)
    expected = greedy(model, tokens, 4)
    model.forward = torch.compile(model.forward, backend="eager")
    cache = dkv.hf.Cache(model, engine=FakeEngine())

    out = greedy(model, tokens, 4, past_key_values=cache)

    assert out == expected
    assert cache.report().compressed or "does not attend to the cache's rows" in cache.report().failure
