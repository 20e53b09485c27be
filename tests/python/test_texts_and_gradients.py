"""What a caller may do with a cache that holds a text: ask its last token again, give too little, want gradients."""

from __future__ import annotations

import pytest
import torch
import transformers
from fakes import FakeEngine, ragged
from test_cache import greedy, logits_of_masked_model, plain

import dkv.hf


def filled(model, tokens, **engine) -> dkv.hf.Cache:
    cache = dkv.hf.Cache(model, engine=FakeEngine(**engine))
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    return cache


def test_the_text_that_is_in_the_cache_already_goes_on_from_its_last_token(tiny_llama, prompt):
    tokens = prompt(60)
    cache = filled(tiny_llama, tokens, compress=False)

    assert greedy(tiny_llama, tokens, 8, past_key_values=cache) == plain(tiny_llama, tokens, 8)
    assert cache.get_seq_length() == 67


@pytest.mark.parametrize("keep", [None, ragged])
def test_a_compressed_text_is_asked_by_its_last_token_again(tiny_llama, prompt, keep):
    tokens = prompt(60)
    cache = filled(tiny_llama, tokens, **({} if keep is None else {"keep": keep}))
    assert cache.report().compressed

    out = torch.tensor([greedy(tiny_llama, tokens, 8, past_key_values=cache)])

    # The last token's own query sees the kept rows, as the queries after the prompt do.
    expected = logits_of_masked_model(tiny_llama, out, cache, 60)
    with torch.no_grad():
        again = torch.cat([tokens, tokens[:, -1:]], 1)
    assert out[0, 61:].tolist() == expected[:-1].argmax(-1).tolist()
    assert out[0, 60] == first_of_kept_rows(tiny_llama, again, cache)
    assert cache.get_seq_length() == 67


def first_of_kept_rows(model, again, cache) -> int:
    """The last token's query over the kept rows, itself among them: its second row, at the same place, is hidden."""
    total, layers = again.shape[1] - 1, model.config.num_hidden_layers
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    masks = []
    for index in range(layers):
        mask = torch.full((1, model.config.num_attention_heads, total, total), float("-inf")).triu(1)
        for head, positions in enumerate(cache.kept_positions(index)):
            dropped = torch.ones(total, dtype=torch.bool)
            dropped[positions] = False
            mask[:, head * groups : (head + 1) * groups, -1].masked_fill_(dropped, float("-inf"))
        masks.append(mask)
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": masks[module.layer_idx]}), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        best = model(again[:, :-1], use_cache=False).logits[0, -1].argmax()
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    return int(best)


@pytest.mark.parametrize("compress", [True, False])
def test_fewer_tokens_than_the_cache_has_are_refused(tiny_llama, prompt, compress):
    cache = filled(tiny_llama, prompt(60), compress=compress)

    with pytest.raises(ValueError, match=r"was given 30 tokens, and the cache has 60 already: .* reset\(\) the cache"):
        greedy(tiny_llama, prompt(30, seed=3), 4, past_key_values=cache)

    cache.reset()
    assert greedy(tiny_llama, prompt(30, seed=3), 1, past_key_values=cache) == plain(tiny_llama, prompt(30, seed=3), 1)


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 wants the whole text")
def test_new_tokens_alone_are_taken_with_a_mask_of_the_whole_text(tiny_llama, prompt, tmp_path):
    tokens, new = prompt(60), prompt(9, seed=3)
    text = torch.cat([tokens, new], 1)
    expected = plain(tiny_llama, text, 6)[69:]
    dkv.hf.save(tiny_llama, tokens, tmp_path / "cache.safetensors")

    for cache in (filled(tiny_llama, tokens, compress=False), dkv.hf.load(tmp_path / "cache.safetensors", tiny_llama)):
        out = tiny_llama.generate(
            new, attention_mask=torch.ones_like(text), max_new_tokens=6, do_sample=False, past_key_values=cache
        )
        assert out[0, 9:].tolist() == expected


def test_without_use_cache_the_cache_stays_empty_and_says_so(tiny_llama, prompt):
    tokens = prompt(60)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    assert greedy(tiny_llama, tokens, 6, past_key_values=cache, use_cache=False) == plain(tiny_llama, tokens, 6)
    assert cache.get_seq_length() == 0
    assert cache.report().failure == "generate() was given use_cache=False"


@pytest.mark.parametrize("compress", [True, False])
def test_a_batch_after_one_sequence_is_refused(tiny_llama, prompt, compress):
    cache = filled(tiny_llama, prompt(60), compress=compress)

    with pytest.raises(ValueError, match="a batch of 2 came to a cache that has one sequence"):
        tiny_llama(prompt(4).repeat(2, 1), past_key_values=cache)


@pytest.mark.parametrize("compress", [True, False])
def test_a_backward_pass_through_the_cache_is_refused_and_not_wrong(tiny_llama, prompt, compress):
    tokens = prompt(60)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(compress=compress))

    first = tiny_llama(tokens, labels=tokens, past_key_values=cache)  # Gradients are recorded, wanted or not.
    then = tiny_llama(prompt(9), labels=prompt(9), past_key_values=cache)

    assert cache.report().compressed is compress
    torch.testing.assert_close(first.loss, tiny_llama(tokens, labels=tokens).loss)
    for loss in (first.loss, then.loss):
        with pytest.raises(RuntimeError, match="a dkv cache keeps no gradients of K and V"):
            loss.backward()
