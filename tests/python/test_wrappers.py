"""Models inside other modules, and wrappers that bring a cache of their own."""

from __future__ import annotations

import functools

import pytest
import torch
from conftest import make_tiny_llama
from fakes import FakeEngine
from test_cache import greedy, logits_of_masked_model, plain, step_by_step
from transformers import DynamicCache

import dkv.hf


class Adapted(torch.nn.Module):
    """As PEFT's models are made: the config and generate() are the inner model's."""

    def __init__(self, model):
        super().__init__()
        self.base_model, self.config = model, model.config

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.base_model.generate(*args, **kwargs)


WRAPPERS = {
    "compiled": functools.partial(torch.compile, backend="eager"),
    "adapted": Adapted,
    "data parallel": torch.nn.DataParallel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_model_in_a_wrapper_is_the_one_that_is_compressed(tiny_llama, prompt, wrapper):
    wrapped, tokens = WRAPPERS[wrapper](tiny_llama), prompt(60)
    cache = dkv.hf.Cache(wrapped, engine=FakeEngine())
    runs = tiny_llama if wrapper == "compiled" else wrapped  # Its forward is compiled, and generate() does not use it.

    logits = step_by_step(runs, cache, tokens, 50)

    assert cache.report().compressed, cache.report().failure
    torch.testing.assert_close(logits, logits_of_masked_model(tiny_llama, tokens, cache, 50), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrapper", ["compiled", "adapted"])
def test_generate_of_a_wrapper_tells_the_prompt_s_length(tiny_llama, prompt, wrapper):
    wrapped, tokens = WRAPPERS[wrapper](tiny_llama), prompt(60)
    expected = plain(tiny_llama, tokens, 8)
    whole = dkv.hf.Cache(wrapped, engine=FakeEngine(compress=False))
    cut = dkv.hf.Cache(wrapped, engine=FakeEngine())

    assert greedy(wrapped, tokens, 8, past_key_values=whole, prefill_chunk_size=20) == expected
    greedy(wrapped, tokens, 8, past_key_values=cut, prefill_chunk_size=20)

    assert cut.report().compressed and cut.report().prompt_tokens == 60
    assert greedy(wrapped, tokens, 8) == expected


def test_a_prompt_saved_through_a_wrapper_goes_on_with_its_next_token(tiny_llama, prompt, tmp_path):
    wrapped, tokens, path = Adapted(tiny_llama), prompt(60), tmp_path / "cache.safetensors"
    capture = dkv.hf.Capture(wrapped)
    expected = greedy(wrapped, tokens, 6, past_key_values=capture)
    dkv.hf.save(capture, path)

    loaded = dkv.hf.load(path, wrapped)
    out = dkv.hf.generate(wrapped, loaded, max_new_tokens=6, do_sample=False)

    assert capture.next_token == loaded.next_token == expected[60]
    assert out[0].tolist() == expected


def test_two_models_in_one_module_are_not_taken_for_its_own(tiny_llama):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eyes, self.mouth = make_tiny_llama(), tiny_llama

    with pytest.raises(TypeError, match="model is a Pair, not a model of transformers"):
        dkv.hf.Cache(Pair(), engine=FakeEngine())


def test_a_model_that_puts_another_cache_in_the_place_of_ours_goes_on_with_it(tiny_llama, prompt):
    """As PEFT's prefix tuning does with what is not a DynamicCache, after it has asked for its bound."""
    tokens, expected = prompt(40), plain(tiny_llama, prompt(40), 6)
    prepare, bounds = tiny_llama.prepare_inputs_for_generation, []

    def with_its_own(*args, **kwargs):
        cache = kwargs["past_key_values"]
        if not cache.get_seq_length():
            bounds.append(cache.max_cache_len)
            kwargs["past_key_values"] = tiny_llama.own = DynamicCache(config=tiny_llama.config)
        else:
            kwargs["past_key_values"] = tiny_llama.own
        return prepare(*args, **kwargs)

    tiny_llama.prepare_inputs_for_generation = with_its_own
    for cache in (dkv.hf.Cache(tiny_llama, engine=FakeEngine()), dkv.hf.Capture(tiny_llama)):
        assert greedy(tiny_llama, tokens, 1, past_key_values=cache) == expected[:41]
        assert bounds.pop() == -1
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    greedy(tiny_llama, tokens, 1, past_key_values=cache)
    assert cache.report().failure == "generate() ended and gave the cache no rows"
