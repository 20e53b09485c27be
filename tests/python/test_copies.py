"""copy.deepcopy of a cache, transformers' own way to use a prefix again: every copy goes on alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fakes import FakeEngine, ragged
from test_cache import greedy, plain

import dkv
import dkv.hf

KEEPERS = {
    "alike": lambda: FakeEngine(),
    "ragged": lambda: FakeEngine(keep=ragged),
    "whole": lambda: FakeEngine(compress=False),
    "failed halfway": lambda: FakeEngine(fail_at_layer=3),
    "no sidecar": lambda: FakeEngine(open_error=dkv.DkvError(dkv.Status.UNAVAILABLE, "no sidecar")),
}


@pytest.fixture(params=KEEPERS)
def keeper(request):
    return KEEPERS[request.param]


def prefilled(model, tokens, engine) -> dkv.hf.Cache:
    cache = dkv.hf.Cache(model, engine=engine)
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    return cache


def texts_alone(model, prefix, questions, make) -> list[list[int]]:
    """What each question gets with a cache of its own."""
    return [greedy(model, question, 8, past_key_values=prefilled(model, prefix, make())) for question in questions]


@pytest.fixture
def prefix(prompt):
    return prompt(100)


@pytest.fixture
def questions(prompt, prefix):
    return [torch.cat([prefix, prompt(count, seed=count)], dim=1) for count in (5, 12, 1)]


def test_each_question_gets_a_copy_of_the_prefix(tiny_llama, prefix, questions, keeper):
    alone = texts_alone(tiny_llama, prefix, questions, keeper)
    cache = prefilled(tiny_llama, prefix, keeper())

    texts = [greedy(tiny_llama, question, 8, past_key_values=copy.deepcopy(cache)) for question in questions]

    assert texts == alone
    assert cache.get_seq_length() == 100
    assert greedy(tiny_llama, questions[0], 8, past_key_values=cache) == alone[0]


def test_copies_and_copies_of_copies_take_turns(tiny_llama, prefix, questions, keeper):
    alone = texts_alone(tiny_llama, prefix, questions, keeper)
    caches = [prefilled(tiny_llama, prefix, keeper())]
    caches.append(copy.deepcopy(caches[0]))
    caches.append(copy.deepcopy(caches[1]))
    texts = [question.clone() for question in questions]

    with torch.no_grad():
        for _ in range(8):
            for index, cache in enumerate(caches):
                logits = tiny_llama(texts[index][:, cache.get_seq_length() :], past_key_values=cache).logits
                texts[index] = torch.cat([texts[index], logits[:, -1:].argmax(-1)], dim=1)

    assert [text[0].tolist() for text in texts] == alone


def test_a_copy_of_a_text_under_way_has_its_tail(tiny_llama, prefix, prompt, keeper):
    cache = prefilled(tiny_llama, prefix, keeper())
    with torch.no_grad():
        tiny_llama(prompt(10, seed=1), past_key_values=cache)
        twin = copy.deepcopy(cache)
        tiny_llama(prompt(30, seed=2), past_key_values=cache)
        logits = tiny_llama(prompt(7, seed=3), past_key_values=twin).logits
        other = prefilled(tiny_llama, prefix, keeper())
        tiny_llama(prompt(10, seed=1), past_key_values=other)
        expected = tiny_llama(prompt(7, seed=3), past_key_values=other).logits

    assert torch.equal(logits, expected)
    assert (cache.get_seq_length(), twin.get_seq_length()) == (140, 117)


@pytest.mark.parametrize("end", ["reset", "crop", "del"])
def test_what_happens_to_the_original_does_not_touch_its_copies(tiny_llama, prefix, questions, keeper, end):
    alone = texts_alone(tiny_llama, prefix, questions, keeper)
    cache = prefilled(tiny_llama, prefix, keeper())
    with torch.no_grad():
        tiny_llama(prefix[:, :9], past_key_values=cache)
    cache.crop(-9)
    twin, other = copy.deepcopy(cache), copy.deepcopy(cache)

    if end == "reset":
        cache.reset()
        greedy(tiny_llama, prefix.flip(1), 3, past_key_values=cache)
    elif end == "crop":
        greedy(tiny_llama, questions[1], 3, past_key_values=cache)
        cache.crop(-5)
    del cache
    other.reset()

    assert greedy(tiny_llama, questions[0], 8, past_key_values=twin) == alone[0]


def test_kept_rows_are_shared_and_whole_rows_are_not(tiny_llama, prefix):
    cache = prefilled(tiny_llama, prefix, FakeEngine())
    twin = copy.deepcopy(cache)
    whole = prefilled(tiny_llama, prefix, FakeEngine(compress=False))
    whole_twin = copy.deepcopy(whole)

    assert twin.layers[0].prefix.keys.data_ptr() == cache.layers[0].prefix.keys.data_ptr()
    assert whole_twin.layers[0].keys.data_ptr() != whole.layers[0].keys.data_ptr()
    assert torch.equal(whole_twin.layers[0].keys, whole.layers[0].keys)


def test_a_copys_report_is_the_prompts_and_its_own(tiny_llama, prefix):
    cache = prefilled(tiny_llama, prefix, FakeEngine())
    expected = cache.report().as_dict()

    twin = copy.deepcopy(cache)
    positions = [twin.kept_positions(layer) for layer in range(4)]
    cache.reset()
    greedy(tiny_llama, prefix[:, :50], 2, past_key_values=cache)

    assert twin.report().as_dict() == expected
    assert expected["compressed"] and expected["prompt_tokens"] == 100
    assert cache.report().prompt_tokens == 50
    assert [twin.kept_positions(layer) for layer in range(4)] == positions


def test_a_copy_of_an_unused_cache_compresses_its_own_prompt(tiny_llama, prefix):
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine)
    twin = copy.deepcopy(cache)

    first = greedy(tiny_llama, prefix, 4, past_key_values=twin)
    second = greedy(tiny_llama, prefix, 4, past_key_values=cache)

    assert first == second
    assert len(engine.sessions) == 2 and cache.report().compressed and twin.report().compressed


def test_a_reset_copy_takes_the_next_prompt(tiny_llama, prefix):
    cache = prefilled(tiny_llama, prefix, FakeEngine())
    twin = copy.deepcopy(cache)

    twin.reset()
    greedy(tiny_llama, prefix[:, :60], 4, past_key_values=twin)

    assert twin.report().compressed and twin.report().prompt_tokens == 60
    assert cache.report().prompt_tokens == 100


def test_a_cache_that_reads_its_prompt_is_not_copied(tiny_llama, prefix):
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine, prompt_tokens=100)
    with torch.no_grad():
        tiny_llama(prefix[:, :60], past_key_values=cache)

        with pytest.raises(RuntimeError, match="^the cache cannot be copied: it is reading its prompt: copy it when the"):
            copy.deepcopy(cache)
        tiny_llama(prefix[:, 60:], past_key_values=cache)

    assert cache.report().compressed and engine.sessions[0].closed_with == [None]


def test_copy_copy_goes_on_alone_too(tiny_llama, prefix, questions):
    cache = prefilled(tiny_llama, prefix, FakeEngine())

    twin = copy.copy(cache)
    greedy(tiny_llama, questions[0], 8, past_key_values=twin)

    assert (cache.get_seq_length(), twin.get_seq_length()) == (100, 112)


def test_sliding_layers_are_copied_with_the_others(prompt):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, sliding_window=24, max_position_embeddings=512,
        layer_types=["sliding_attention", "full_attention"] * 2, query_pre_attn_scalar=16,
        initializer_range=0.3, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    prefix = prompt(90)
    questions = [torch.cat([prefix, prompt(count, seed=count)], dim=1) for count in (5, 12)]
    alone = texts_alone(model, prefix, questions, FakeEngine)
    cache = prefilled(model, prefix, FakeEngine())

    assert [greedy(model, question, 8, past_key_values=copy.deepcopy(cache)) for question in questions] == alone


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_copy_made_in_one_mode_is_used_in_another(tiny_llama, prefix, prompt, keeper, mode):
    cache = prefilled(tiny_llama, prefix, keeper())
    with mode():
        tiny_llama(prompt(3), past_key_values=cache)
        twin = copy.deepcopy(cache)
    with torch.no_grad():
        expected = tiny_llama(prompt(4), past_key_values=cache).logits

        assert torch.equal(tiny_llama(prompt(4), past_key_values=twin).logits, expected)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_loaded_cache_is_copied(tiny_llama, prompt, tmp_path, compressed):
    from cuts import cut

    tokens, question = prompt(60), prompt(6, seed=2)
    path = tmp_path / "whole.safetensors"
    dkv.hf.save(tiny_llama, tokens, path)
    if compressed:
        path = cut(path, tmp_path / "cut.safetensors", lambda layer, head, n: [t for t in range(n) if t % 2 or t > 50])

    def answer(cache, tokens=None):
        return dkv.hf.generate(tiny_llama, cache, tokens, max_new_tokens=6, do_sample=False)[0].tolist()

    alone, alone_goes_on = answer(dkv.hf.load(path, tiny_llama), question), answer(dkv.hf.load(path, tiny_llama))
    cache = dkv.hf.load(path, tiny_llama)
    twins = [copy.deepcopy(cache) for _ in range(3)]

    assert answer(twins[0], question) == alone
    assert answer(twins[1]) == alone_goes_on
    assert answer(cache) == alone_goes_on
    assert answer(copy.deepcopy(twins[2]), question) == alone


def test_a_capture_is_copied(tiny_llama, prompt, tmp_path):
    cache = dkv.hf.Capture(tiny_llama)
    greedy(tiny_llama, prompt(60), 3, past_key_values=cache)
    twin = copy.deepcopy(cache)

    greedy(tiny_llama, torch.cat([prompt(60), prompt(9, seed=1)], 1), 3, past_key_values=cache)
    twin_length = twin.get_seq_length()
    dkv.hf.save(twin, tmp_path / "twin.safetensors")
    dkv.hf.save(cache, tmp_path / "cache.safetensors")

    assert twin_length == 62
    assert (tmp_path / "twin.safetensors").read_bytes() == (tmp_path / "cache.safetensors").read_bytes()


def test_a_cache_is_not_pickled(tiny_llama, prefix, tmp_path):
    cache = prefilled(tiny_llama, prefix, FakeEngine())

    with pytest.raises(TypeError, match="^a dkv.hf.cache.Cache cannot be pickled, .*dkv.hf.save and dkv.hf.load"):
        pickle.dumps(cache)
    with pytest.raises(TypeError, match="cannot be pickled"):
        torch.save(cache, tmp_path / "cache.pt")
    assert plain(tiny_llama, prefix, 2)
