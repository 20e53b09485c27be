"""KVzip's scores against softmaxes written out one query at a time."""

import pytest
import torch
from conftest import make_tiny_llama
from test_lab_probe import make_tiny_gemma, make_tiny_gemma2, make_tiny_gpt_oss

import dkv.hf
from dkv.hf.replay import KINDS, Instruction, ReplayError, replay_scores
from dkv_lab.probe import Probe

ASK = Instruction(first=[7, 8, 9], later=[10, 11], answer=[12, 13])


def tokens(count: int, seed: int = 5) -> list[int]:
    return torch.randint(20, 500, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def brute_force(model, ids: list[int], chunk: int, plus: bool) -> list[torch.Tensor]:
    """From one plain forward over context and replay for each chunk: every query, head and row by itself."""
    config, n = model.config, len(ids)
    per_layer = {}
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    for begin in range(0, n, chunk):
        part = ids[begin : begin + chunk]
        quoted = ASK.first if begin == 0 else ASK.later + ids[max(0, begin - 8) : begin]
        for index, call in spied(model, ids + quoted + ASK.answer + part).items():
            if kinds[index] != "full_attention":
                continue
            query, key, value, hidden, scale, softcap, sinks, output = call
            group = query.shape[0] // key.shape[0]
            scores = per_layer.setdefault(index, torch.zeros(key.shape[0], n))
            seen = list(range(min(4, begin))) + list(range(begin, begin + len(part)))
            for head in range(query.shape[0]):
                for t in range(n, query.shape[1]):
                    rows = seen + list(range(n, t + 1))
                    logits = (key[head // group, rows] @ query[head, t]) * scale
                    if softcap:
                        logits = softcap * torch.tanh(logits / softcap)
                    if sinks is not None:
                        logits = torch.cat([logits, sinks[head : head + 1]])
                    weights = logits.softmax(0)[min(4, begin) : len(seen)]
                    if plus:
                        dim = value.shape[-1]
                        out = value[head // group, begin : begin + len(part)] @ output[:, head * dim : (head + 1) * dim].T
                        weights = weights * out.norm(dim=-1) / hidden[t].norm()
                    place = scores[head // group, begin : begin + len(part)]
                    torch.maximum(place, weights, out=place)
    for scores in per_layer.values():
        scores[:, :4] = 1
    return [per_layer[index] for index in sorted(per_layer)]


def spied(model, ids: list[int]) -> dict:
    """What each attention was called with in a forward without a cache."""
    from transformers import AttentionInterface

    seen, inputs = {}, {}

    def spy(module, query, key, value, attention_mask, **options):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        sinks, softcap = options.get("s_aux"), options.get("softcap")
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        seen[module.layer_idx] = (query[0], key[0], value[0], inputs[module.layer_idx], scale, softcap, sinks, module.o_proj.weight)
        if softcap or sinks is not None:
            return eager(query, key, value, scale, softcap, sinks, options.get("sliding_window")), None
        window = options.get("sliding_window")
        return sdpa_attention_forward(module, query, key, value, mask(key.shape[2], window), **options)

    AttentionInterface.register("spy", spy)
    hooks = [
        module.register_forward_pre_hook(
            lambda module, arguments, options: inputs.update({module.layer_idx: options.get("hidden_states", (*arguments, None)[0])[0]}),
            with_kwargs=True,
        )
        for module in model.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "o_proj")
    ]
    before = model.config._attn_implementation
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    model.set_attn_implementation(before)
    for hook in hooks:
        hook.remove()
    return seen


def mask(count: int, window) -> torch.Tensor:
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    return (seen if window is None else seen & ~torch.ones_like(seen).tril(-window))[None, None]


def eager(query, key, value, scale, softcap, sinks, window):
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask(key.shape[2], window), float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)], -1)
    return (logits.softmax(-1)[..., : key.shape[2]] @ value.repeat_interleave(group, 1)).transpose(1, 2)


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gemma, make_tiny_gemma2, make_tiny_gpt_oss])
@pytest.mark.parametrize("chunk", [64, 23])
def test_scores_are_the_largest_attention_of_a_replay(make, chunk):
    model, ids = make(), tokens(50)

    found = replay_scores(model, ids, ASK, kinds=KINDS, chunk=chunk)

    for kind in KINDS:
        expected = brute_force(model, ids, chunk, plus=kind == "kvzip+")
        assert len(found[kind]) == len(expected)
        for layer, wanted in zip(found[kind], expected):
            torch.testing.assert_close(layer, wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gemma])
def test_the_lab_replays_from_the_rows_it_has(make):
    ids = tokens(50)
    expected = replay_scores(make(), ids, ASK)["kvzip"]
    probe = Probe(make(), 8)

    found = probe.replay(probe.prefill(torch.tensor(ids)), ids, ASK)["kvzip"]

    for layer, wanted in zip(found, expected):
        torch.testing.assert_close(layer, wanted, rtol=2e-4, atol=1e-6)
    assert probe.model.config._attn_implementation == "dkv_probe"


def test_rows_of_another_model_are_refused():
    with pytest.raises(ReplayError, match="rows of 1 layers for a model with 4"):
        replay_scores(make_tiny_llama(), tokens(20), ASK, rows=[(torch.zeros(2, 20, 16),) * 2])


class Words:
    """A tokenizer whose instruction is ASK."""

    chat_template = None

    def __call__(self, text, add_special_tokens=False):
        known = {"\n\nRepeat the previous context exactly.": ASK.first, "\n": ASK.answer}
        return {"input_ids": known.get(text, ASK.later)}


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gemma])
def test_a_captured_prompt_is_replayed_after_its_generation(make):
    model, ids = make(), tokens(50)
    cache = dkv.hf.Capture(model)
    model.generate(torch.tensor([ids]), past_key_values=cache, max_new_tokens=4, do_sample=False)

    found = dkv.hf.replay(cache, Words())

    for layer, wanted in zip(found, replay_scores(make(), ids, ASK)["kvzip"], strict=True):
        torch.testing.assert_close(layer, wanted, rtol=2e-4, atol=1e-6)
    assert cache.captured[0].get_seq_length() == 53  # The cache is as it was.


def test_what_cannot_be_replayed_is_said():
    model = make_tiny_llama()
    cache = dkv.hf.Capture(model)

    with pytest.raises(ReplayError, match="the prompt of this cache has not run yet"):
        dkv.hf.replay(cache, Words())
    model(torch.tensor([tokens(20)]), past_key_values=cache)
    with pytest.raises(ReplayError, match="token ids are not known: run it with generate"):
        dkv.hf.replay(cache, Words())
    with pytest.raises(ReplayError, match="kind is kvzap, not kvzip or kvzip"):
        dkv.hf.replay(cache, Words(), "kvzap")
