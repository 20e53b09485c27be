"""Every architecture through a real dkvd: the text is right, whatever becomes of the prompt."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import pytest
import torch
import transformers
from reference import Reference, best_by_attention
from table import ARCHITECTURES, COMPRESSED, REFUSED, WHOLE, build
from transformers import DynamicCache, EncoderDecoderCache

import dkv
import dkv.hf

PROMPT, WINDOW, CAPACITY, NEW, STEPS = 300, 16, 64, 8, 4
TOLERANCE = 1e-5

each = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.sample if kind.sample else ()) for name, kind in ARCHITECTURES.items()],
)


@functools.lru_cache(maxsize=1)
def built(name: str) -> torch.nn.Module | None:
    return build(ARCHITECTURES[name])


@pytest.fixture
def model(name):
    made = built(name)
    if made is None:
        pytest.skip(f"transformers {transformers.__version__} has no {ARCHITECTURES[name].config}")
    return made


def tokens_of(count: int, seed: int) -> torch.Tensor:
    return torch.randint(2, 250, (1, count), generator=torch.Generator().manual_seed(seed))


def inputs(model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tokens as the model takes them: beside an encoder's, where it has one."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": tokens}
    if model.main_input_name == "input_features":
        features = torch.randn(1, model.config.num_mel_bins, 64, generator=torch.Generator().manual_seed(2))
        return {"input_features": features, "decoder_input_ids": tokens}
    return {"input_ids": tokens_of(20, 2), "decoder_input_ids": tokens}


def generated(model, cache=None, count: int = NEW):
    """(tokens, logits) of what follows the prompt."""
    given = inputs(model, tokens_of(PROMPT, 1))
    given["attention_mask"] = torch.ones_like(given[model.main_input_name], dtype=torch.long)
    if model.main_input_name == "input_features":
        del given["attention_mask"]
    if cache is not None:
        given["past_key_values"] = cache
    given |= dict(max_new_tokens=count, do_sample=False, return_dict_in_generate=True, output_logits=True)
    out = model.generate(**given)
    return out.sequences[0, -count:].tolist(), torch.cat(out.logits)


@functools.lru_cache(maxsize=1)
def plain(model):
    """What the model generates before it has met dkv."""
    return generated(model)


@contextmanager
def unchanged(model):
    """A plain generate() and the model's attention are afterwards what they were before."""
    attention, (text, logits) = model.config._attn_implementation, plain(model)
    yield text, logits
    assert model.config._attn_implementation == attention
    again, same = generated(model)
    assert again == text
    assert torch.equal(same, logits)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((found - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


def cache_for(model, sidecar, policy: str | None, **wish) -> dkv.hf.Cache:
    return dkv.hf.Cache(model, policy, endpoint=sidecar.endpoint, timeout_s=60, **wish)


@each
def test_fullkv_is_the_plain_models_text(name, model, sidecar):
    with unchanged(model) as (text, logits):
        cache = cache_for(model, sidecar, "fullkv")
        found, same = generated(model, cache)

    assert found == text
    assert close(same, logits)
    assert not cache.report().compressed


@each
def test_the_default_policy_keeps_a_short_prompt_whole(name, model, sidecar):
    with unchanged(model) as (text, _):
        cache = cache_for(model, sidecar, None)
        found, _ = generated(model, cache)

    assert found == text
    assert cache.report().failure is None or ARCHITECTURES[name].outcome == REFUSED


@each
@pytest.mark.parametrize("policy", ["snapkv", "dynamickv"])
def test_a_prompt_beyond_the_budget_is_cut_rightly_or_not_at_all(name, model, sidecar, policy, note):
    kind = ARCHITECTURES[name]
    with unchanged(model) as (text, logits):
        cache = cache_for(model, sidecar, policy, capacity=CAPACITY, window=WINDOW, kernel=1)
        if kind.outcome == COMPRESSED:
            check_cut(model, cache, kind.layers)
            cache.reset()
        given = cache
        if model.config.is_encoder_decoder:
            given = EncoderDecoderCache(cache, DynamicCache(config=model.config))
        found, same = generated(model, given)

    report = cache.report()
    if kind.outcome == COMPRESSED:
        assert report.compressed, report.failure or report.kept_whole
        assert close(same[0], logits[0])  # Made before anything was dropped.
        note("prompt", f"compressed, {report.layers} of {model.config.num_hidden_layers} layers")
        return
    assert found == text and close(same, logits)
    assert not report.compressed
    reason = report.kept_whole if kind.outcome == WHOLE else report.failure
    assert reason and kind.reason in reason, (report.kept_whole, report.failure)
    note("prompt", f"{kind.outcome}: {reason}")


def check_cut(model, cache: dkv.hf.Cache, layers: int) -> None:
    """A prompt and what follows it, against the reference."""
    prompt, more = tokens_of(PROMPT, 1), tokens_of(STEPS, 5)
    with torch.no_grad():
        prefill = model(prompt, past_key_values=cache).logits[0, -1]
        assert cache.report().compressed, cache.report().failure or cache.report().kept_whole
        steps = [model(more[:, at : at + 1], past_key_values=cache).logits[0, -1] for at in range(STEPS)]
        steps = torch.stack(steps)
    kept = {index: cache.kept_positions(index) for index in range(len(cache.layers))}
    kept = {index: heads for index, heads in kept.items() if heads is not None}
    reference = Reference(model, prompt, WINDOW)

    wanted = reference.steps(more, kept)

    assert len(kept) == layers and reference.masked == set(kept)
    assert sum(len(head) for heads in kept.values() for head in heads) == CAPACITY * sum(map(len, kept.values()))
    assert close(prefill, reference.prefill)
    assert close(steps, wanted), float((steps - wanted).abs().max())
    for index, heads in kept.items():
        scores = best_by_attention(reference.weights[index], len(heads), WINDOW)
        for head, positions in enumerate(heads):
            assert positions[-WINDOW:] == list(range(PROMPT - WINDOW, PROMPT))
            least = scores[head].topk(len(positions) - WINDOW).values[-1]
            assert bool((scores[head, positions[:-WINDOW]] >= least * (1 - 1e-3)).all())


@each
def test_a_file_is_written_whole_or_refused_in_one_line(name, model, sidecar, tmp_path, note):
    path, prompt, question = tmp_path / "prompt.safetensors", tokens_of(PROMPT, 1), tokens_of(5, 6)
    with unchanged(model):
        try:
            dkv.hf.save(model, prompt, path)
        except (dkv.DkvError, ValueError) as refused:
            note("file", f"refused: {refused}")
            assert "\n" not in str(refused)
            assert not path.exists()
            return
        cache = dkv.hf.load(path, model)
        found = dkv.hf.generate(model, cache, question, max_new_tokens=NEW, do_sample=False)
        both = torch.cat([prompt, question], dim=1)
        text = model.generate(both, attention_mask=torch.ones_like(both), max_new_tokens=NEW, do_sample=False)
    note("file", "saved and loaded")
    assert found.tolist() == text.tolist()
