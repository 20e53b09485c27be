"""Tokens that generate() guesses and takes back (prompt lookup, an assistant): the text stays as it is without guesses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT, make_tiny_llama
from fakes import FakeEngine, ragged
from test_cache import greedy, plain

import dkv
import dkv.hf

LOOKUP = {"prompt_lookup_num_tokens": 4, "eos_token_id": 10**6}  # transformers 4.57 fails without an end: one that never comes.
GUESSES = {
    "prompt lookup": lambda model: LOOKUP,
    "an assistant": lambda model: {"assistant_model": make_tiny_llama(layers=1)},
    "the model as its own assistant": lambda model: {"assistant_model": make_tiny_llama()},
    "early exit": lambda model: {"assistant_early_exit": 2},
}


@pytest.fixture(params=GUESSES)
def guesses(request, tiny_llama):
    return GUESSES[request.param](tiny_llama)


@pytest.fixture
def repeating(prompt):
    return torch.cat([prompt(50)] * 3, dim=1)


def run(model, tokens, engine, count=24, **options):
    cache = dkv.hf.Cache(model, engine=engine)
    return greedy(model, tokens, count, past_key_values=cache, **options), cache


def forwards(model, action) -> int:
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    action()
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("keep", ["alike", "ragged", "whole"])
def test_the_text_is_that_without_guesses(tiny_llama, repeating, guesses, keep):
    def engine():
        return {"alike": FakeEngine(), "ragged": FakeEngine(keep=ragged), "whole": FakeEngine(compress=False)}[keep]

    expected, without = run(tiny_llama, repeating, engine())
    text, cache = run(tiny_llama, repeating, engine(), **guesses)

    assert text == expected
    report = cache.report()
    assert report.failure is None and report.compressed is (keep != "whole") and report.prompt_tokens == 150
    assert report.kept_per_head == without.report().kept_per_head
    assert cache.kept_positions(1) == without.kept_positions(1)


def test_the_prompts_last_queries_are_scored_and_no_guessed_ones(tiny_llama, repeating, guesses):
    without, guessing = FakeEngine(window=8), FakeEngine(window=8)

    run(tiny_llama, repeating, without)
    run(tiny_llama, repeating, guessing, **guesses)

    for index in range(4):
        assert torch.equal(guessing.sessions[0].queries[index], without.sessions[0].queries[index])


def test_right_guesses_save_forwards(tiny_llama, repeating):
    assistant = make_tiny_llama()

    steps = forwards(tiny_llama, lambda: run(tiny_llama, repeating, FakeEngine(compress=False), assistant_model=assistant))

    assert steps < 16  # Of 24 tokens.


def test_guesses_with_a_prefill_in_chunks_and_with_sampling(tiny_llama, repeating):
    expected, _ = run(tiny_llama, repeating, FakeEngine())
    chunked, cache = run(tiny_llama, repeating, FakeEngine(), prefill_chunk_size=40, **LOOKUP)
    assert chunked == expected and cache.report().compressed

    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    out = tiny_llama.generate(
        repeating, attention_mask=torch.ones_like(repeating), max_new_tokens=12, do_sample=True, past_key_values=cache,
        assistant_model=make_tiny_llama(),
    )  # fmt: skip
    assert out.shape == (1, 162) and cache.report().compressed and cache.get_seq_length() == 161


@pytest.mark.parametrize("keep", ["alike", "whole"])
def test_a_text_that_goes_on_is_guessed_from_its_first_step(tiny_llama, repeating, guesses, keep):
    prefix, engine = repeating[:, :110], FakeEngine(compress=keep != "whole")
    cache = dkv.hf.Cache(tiny_llama, engine=engine)
    with torch.no_grad():
        tiny_llama(prefix, past_key_values=cache)
    twin = copy.deepcopy(cache)

    expected = greedy(tiny_llama, repeating, 12, past_key_values=twin)
    text = greedy(tiny_llama, repeating, 12, past_key_values=cache, **guesses)
    longer = torch.cat([torch.tensor([text]), repeating[:, :20]], dim=1)

    assert text == expected
    assert cache.get_seq_length() == twin.get_seq_length() == 161
    assert greedy(tiny_llama, longer, 8, past_key_values=cache, **guesses) == greedy(tiny_llama, longer, 8, past_key_values=twin)


@pytest.mark.parametrize("question", [True, False])
def test_a_loaded_cache_takes_guesses(tiny_llama, repeating, guesses, tmp_path, question):
    dkv.hf.save(tiny_llama, repeating, tmp_path / "cache.safetensors")
    tokens = repeating[:, :9] if question else None

    def answer(**options):
        cache = dkv.hf.load(tmp_path / "cache.safetensors", tiny_llama)
        return dkv.hf.generate(tiny_llama, cache, tokens, max_new_tokens=12, do_sample=False, **options)[0].tolist()

    assert answer(**guesses) == answer()


def test_a_capture_has_the_prompts_queries(tiny_llama, repeating, guesses, tmp_path):
    for name, options in (("without", {}), ("with", guesses)):
        cache = dkv.hf.Capture(tiny_llama)
        greedy(tiny_llama, repeating, 8, past_key_values=cache, **options)
        dkv.hf.save(cache, tmp_path / name)

    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4's prompt lookup gives another text than its own greedy search")
def test_guesses_of_a_generate_that_was_not_told_of_the_cache_leave_the_prompt_whole(tiny_llama, repeating):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    out = type(tiny_llama).generate(
        tiny_llama, repeating, attention_mask=torch.ones_like(repeating), max_new_tokens=12, do_sample=False,
        past_key_values=cache, **LOOKUP,
    )  # fmt: skip

    assert out[0].tolist() == plain(tiny_llama, repeating, 12)
    assert cache.report().failure == "tokens are guessed, and the prompt's length is not known: call model.generate(), or give prompt_tokens"


def test_a_search_that_repeats_the_prompts_rows_finds_it_whole(tiny_llama, repeating):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    def repeats(model, input_ids, **options):
        """As contrastive search does: the prompt alone, then several candidates at once."""
        past_key_values = options["past_key_values"]
        with torch.no_grad():
            first = model(input_ids, past_key_values=past_key_values).logits[:, -1].argmax(-1)
            past_key_values.batch_repeat_interleave(2)
            return model(first.repeat(2)[:, None], past_key_values=past_key_values).logits[:, -1].argmax(-1)[None]

    out = tiny_llama.generate(
        repeating, custom_generate=repeats, penalty_alpha=0.6, top_k=4, past_key_values=cache, max_new_tokens=2
    )

    assert cache.report().failure == "contrastive search repeats the prompt's rows"
    assert out[0].tolist() == [plain(tiny_llama, repeating, 2)[-1]] * 2


# ---------------------------------------------------------------- crop


def test_crop_takes_whole_rows_and_tails_away_and_the_text_goes_on(tiny_llama, repeating):
    for engine in (FakeEngine(), FakeEngine(compress=False)):
        cache = dkv.hf.Cache(tiny_llama, engine=engine)
        with torch.no_grad():
            tiny_llama(repeating, past_key_values=cache)
            expected = tiny_llama(repeating[:, :5], past_key_values=cache).logits
            cache.crop(-5)
            cache.crop(0)
            again = tiny_llama(repeating[:, :5], past_key_values=cache).logits
            cache.crop(150)  # As in transformers 4: down to that length.

        assert torch.equal(again, expected)
        assert cache.get_seq_length() == 150


def test_a_crop_into_a_compressed_prompt_is_refused_before_any_layer_is_cropped(tiny_llama, repeating):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(fail_at_layer=3, release_after=2))
    with torch.no_grad():
        tiny_llama(repeating, past_key_values=cache)
        tiny_llama(repeating[:, :5], past_key_values=cache)
    assert [layer.prefix is None for layer in cache.layers] == [False, True, True, True]

    with pytest.raises(ValueError, match=r"^cannot crop 6 tokens: layer 0 is compressed, and only the 5 tokens after its "
                                         r"prompt can be taken away: reset\(\) the cache and run the shorter text$"):  # fmt: skip
        cache.crop(-6)

    assert [layer.get_seq_length() for layer in cache.layers] == [155] * 4


def test_a_prompt_that_is_cropped_while_it_is_read_is_kept_whole(tiny_llama, repeating):
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine, prompt_tokens=150)
    with torch.no_grad():
        tiny_llama(repeating[:, :100], past_key_values=cache)
        cache.crop(-10)
        logits = tiny_llama(repeating[:, 90:], past_key_values=cache).logits[0, -1]

    assert int(logits.argmax()) == plain(tiny_llama, repeating, 1)[-1]
    assert cache.report().failure == "tokens were cropped before the prompt's end"
    assert engine.sessions[0].closed_with == [cache.report().failure]


# ---------------------------------------------------------------- a real dkvd


@pytest.mark.long
@pytest.mark.e2e
def test_a_script_with_guesses_is_compressed_under_the_runner(tmp_path, sidecar):
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'python')!r})\n"
        "from conftest import make_tiny_llama\n"
        "tokens = torch.arange(2, 102).repeat(3)[None]\n"
        "model = make_tiny_llama()\n"
        "for more in ({}, {'assistant_model': make_tiny_llama()}, {'prompt_lookup_num_tokens': 4, 'eos_token_id': 10**6}):\n"
        "    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=9, do_sample=False, **more)\n"
        "    print(out[0, 300:].tolist())\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "dkv.hf", "--policy", "snapkv", "--capacity", "96", "--endpoint", sidecar.endpoint,
         "--report", report, script],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.splitlines())) == 1
    reports = json.loads(report.read_text())
    assert [(each["compressed"], each["failure"], each["prompt_tokens"]) for each in reports] == [(True, None, 300)] * 3
