"""The cache without a sidecar, and with one that is faked to fail where a real one seldom does."""

import gc

import pytest
import torch
from fakes import FakeEngine, last_and_every_third, ragged

import dkv
import dkv.hf


def greedy(model, tokens, count, **kwargs):
    return model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False, **kwargs
    )[0].tolist()


def plain(model, tokens, count, **kwargs):
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    out = greedy(model, tokens, count, **kwargs)
    model.set_attn_implementation(before)
    return out


def logits_of_masked_model(model, tokens, cache, prompt_tokens):
    """An independent computation: a dense cache, eager attention, what was dropped masked out per head.

    tokens: the whole text. Returns the logits of every token after the prompt.
    """
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    total = tokens.shape[1]
    logits_mask = {}
    for index in range(model.config.num_hidden_layers):
        mask = torch.full((1, model.config.num_attention_heads, total, total), float("-inf")).triu(1)
        for head, positions in enumerate(cache.kept_positions(index)):
            dropped = torch.ones(prompt_tokens, dtype=torch.bool)
            dropped[positions] = False
            rows = slice(head * groups, (head + 1) * groups)
            mask[:, rows, prompt_tokens:, :prompt_tokens].masked_fill_(dropped, float("-inf"))
        logits_mask[index] = mask
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": logits_mask[module.layer_idx]}),
            with_kwargs=True,
        )
        for layer in model.model.layers
    ]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(tokens, use_cache=False).logits[0, prompt_tokens:]
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def step_by_step(model, cache, tokens, prompt_tokens, first_chunk=None):
    """Prefill, then one token at a time; logits of every token after the prompt."""
    with torch.no_grad():
        bounds = [0, *([first_chunk] if first_chunk else []), prompt_tokens]
        for begin, end in zip(bounds, bounds[1:]):
            model(tokens[:, begin:end], past_key_values=cache)
        steps = [
            model(tokens[:, at : at + 1], past_key_values=cache).logits[0]
            for at in range(prompt_tokens, tokens.shape[1])
        ]
    return torch.cat(steps)


# ---------------------------------------------------------------- nobody answers


@pytest.fixture
def nowhere(tmp_path):
    return f"ipc://{tmp_path}/nobody.sock"


def test_without_a_sidecar_the_text_is_that_of_plain_transformers(tiny_llama, prompt, nowhere):
    tokens = prompt(200)
    expected = plain(tiny_llama, tokens, 64)

    cache = dkv.hf.Cache(tiny_llama, policy="dynamickv", capacity=64, endpoint=nowhere, timeout_s=0.3)
    out = greedy(tiny_llama, tokens, 64, past_key_values=cache)

    assert out == expected
    report = cache.report()
    assert not report.compressed
    assert report.failure.startswith("unavailable: ")
    assert report.kept_per_layer == [200] * 4
    assert report.bytes_dropped == report.bytes_returned == 0


def test_several_generate_calls_continue_one_text(tiny_llama, prompt, nowhere):
    tokens = prompt(60)
    cache = dkv.hf.Cache(tiny_llama, endpoint=nowhere, timeout_s=0.1)

    first = greedy(tiny_llama, tokens, 10, past_key_values=cache)
    longer = torch.cat([torch.tensor([first]), prompt(20, seed=9)], dim=1)
    second = greedy(tiny_llama, longer, 10, past_key_values=cache)

    assert first == plain(tiny_llama, tokens, 10)
    assert second == plain(tiny_llama, longer, 10)
    assert cache.get_seq_length() == longer.shape[1] + 10 - 1


def test_a_reset_cache_takes_the_next_prompt(tiny_llama, prompt, nowhere):
    cache = dkv.hf.Cache(tiny_llama, endpoint=nowhere, timeout_s=0.1)
    greedy(tiny_llama, prompt(50), 5, past_key_values=cache)

    cache.reset()

    assert cache.get_seq_length() == 0
    assert cache.report().prompt_tokens == 0
    assert greedy(tiny_llama, prompt(70, seed=3), 5, past_key_values=cache) == plain(tiny_llama, prompt(70, seed=3), 5)
    assert cache.report().prompt_tokens == 70


def test_prefill_in_chunks_gives_the_same_text(tiny_llama, prompt, nowhere):
    tokens = prompt(100)
    expected = plain(tiny_llama, tokens, 20)
    cache = dkv.hf.Cache(tiny_llama, endpoint=nowhere, timeout_s=0.1)

    assert greedy(tiny_llama, tokens, 20, past_key_values=cache, prefill_chunk_size=32) == expected
    assert cache.report().prompt_tokens == 100


def test_a_prompt_of_one_token_is_no_prompt_to_compress(tiny_llama, prompt, nowhere):
    cache = dkv.hf.Cache(tiny_llama, endpoint=nowhere)

    assert greedy(tiny_llama, prompt(1), 8, past_key_values=cache) == plain(tiny_llama, prompt(1), 8)
    assert cache.report().failure is None


def test_a_text_longer_than_the_storage_moves_to_the_heap(tiny_llama, prompt, nowhere):
    tiny_llama.config.max_position_embeddings = 64
    tokens = prompt(60)
    cache = dkv.hf.Cache(tiny_llama, endpoint=nowhere, timeout_s=0.1)

    out = greedy(tiny_llama, tokens, 100, past_key_values=cache)

    assert cache.layers[0].heap
    assert out == plain(tiny_llama, tokens, 100)


# ---------------------------------------------------------------- what is left to transformers


def test_a_padded_batch_is_kept_as_transformers_keeps_it(tiny_llama, prompt):
    tokens = prompt(40).repeat(2, 1)
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    tiny_llama.set_attn_implementation("sdpa")
    expected = tiny_llama.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())

    out = tiny_llama.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, past_key_values=cache)

    assert torch.equal(out, expected)
    assert cache.report().failure == "a batch of 2: only batch 1 is compressed"


def test_a_padded_prompt_is_kept_whole_and_its_mask_is_used(tiny_llama, prompt):
    tokens = prompt(40)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    tiny_llama.set_attn_implementation("sdpa")
    expected = tiny_llama.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    out = tiny_llama.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, past_key_values=cache)

    assert torch.equal(out, expected)
    assert cache.report().failure == "the prompt is padded or has a mask of its own"
    assert not engine.sessions


def test_beam_search_is_kept_as_transformers_keeps_it(tiny_llama, prompt):
    tokens = prompt(40)
    expected = plain(tiny_llama, tokens, 12, num_beams=3)

    assert greedy(tiny_llama, tokens, 12, num_beams=3, past_key_values=dkv.hf.Cache(tiny_llama, engine=FakeEngine())) == expected


def test_sliding_layers_of_a_hybrid_stay_transformers_own(prompt):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, sliding_window=24, max_position_embeddings=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=16, initializer_range=0.3, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    tokens = prompt(90)
    model.set_attn_implementation("sdpa")
    expected = plain(model, tokens, 20)
    keeps_all = FakeEngine(keep=lambda layer, head, n: list(range(n)))

    cache = dkv.hf.Cache(model, engine=keeps_all)
    out = greedy(model, tokens, 20, past_key_values=cache)

    assert [type(layer).__name__ for layer in cache.layers].count("DkvLayer") == 2
    assert [type(layer).__name__ for layer in cache.layers].count("DynamicSlidingWindowLayer") == 4
    assert out == expected
    assert cache.report().compressed
    assert (cache.report().layers, cache.report().layers_left_alone) == (2, 4)
    assert len(keeps_all.sessions[0].queries) == 2


# ---------------------------------------------------------------- the end of prefill


def test_every_layer_is_reported_once_with_the_last_queries(tiny_llama, prompt):
    engine = FakeEngine(window=8)
    seen = {}
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, args, out, index=index: seen.setdefault(index, out)
        )
        for index, layer in enumerate(tiny_llama.model.layers)
    ]
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    greedy(tiny_llama, prompt(50), 1, past_key_values=cache)

    (session,) = engine.sessions
    assert sorted(session.queries) == [0, 1, 2, 3]
    assert all(queries.shape == (6, 8, 16) for queries in session.queries.values())
    assert session.scales == [0.25] * 4
    for index in range(4):  # RoPE turns rows but does not change their length.
        before = seen[index][0, -8:].view(8, 6, 16).transpose(0, 1)
        torch.testing.assert_close(session.queries[index].norm(dim=-1), before.norm(dim=-1))
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("window", [8, None])
@pytest.mark.parametrize("chunk", [45, 32, 3])
def test_queries_are_collected_across_chunks(tiny_llama, prompt, chunk, window):
    tokens = prompt(50)
    whole, cut = FakeEngine(window=window), FakeEngine(window=window)

    greedy(tiny_llama, tokens, 1, past_key_values=dkv.hf.Cache(tiny_llama, engine=whole))
    greedy(tiny_llama, tokens, 1, past_key_values=dkv.hf.Cache(tiny_llama, engine=cut), prefill_chunk_size=chunk)

    assert len(cut.sessions) == 1
    assert cut.sessions[0].tokens == 50
    for index in range(4):
        torch.testing.assert_close(cut.sessions[0].queries[index], whole.sessions[0].queries[index], atol=1e-3, rtol=1e-3)


def test_a_policy_that_wants_no_queries_is_given_none(tiny_llama, prompt):
    engine = FakeEngine(window=0)
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    greedy(tiny_llama, prompt(50), 4, past_key_values=cache)

    assert engine.sessions[0].queries == dict.fromkeys(range(4))
    assert cache.report().compressed and cache.report().failure is None


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
@pytest.mark.parametrize("chunk", [None, 90])
def test_compressed_decode_equals_plain_attention_masked_to_the_kept_positions(tiny_llama, prompt, keep, chunk):
    tokens = prompt(130)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=keep), prompt_tokens=100)

    logits = step_by_step(tiny_llama, cache, tokens, 100, chunk)

    assert cache.report().compressed
    assert cache.get_seq_length() == 130
    expected = logits_of_masked_model(tiny_llama, tokens, cache, 100)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", [last_and_every_third, ragged])
def test_a_compressed_text_is_continued_by_many_tokens_at_once(tiny_llama, prompt, keep):
    tokens = prompt(190)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(keep=keep))

    with torch.no_grad():
        tiny_llama(tokens[:, :100], past_key_values=cache)
        logits = torch.cat(
            [
                tiny_llama(tokens[:, begin:end], past_key_values=cache).logits[0]
                for begin, end in [(100, 101), (101, 160), (160, 161), (161, 190)]
            ]
        )

    expected = logits_of_masked_model(tiny_llama, tokens, cache, 100)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_the_report_counts_what_was_kept_and_what_came_back(tiny_llama, prompt):
    engine = FakeEngine(release_after=None)
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    greedy(tiny_llama, prompt(2000), 2, past_key_values=cache)

    report = cache.report()
    kept = [len(last_and_every_third(layer, 0, 2000)) for layer in range(4)]
    assert report.kept_per_layer == kept
    assert report.kept_per_head == [[count, count] for count in kept]
    assert report.bytes_full == 4 * 2 * 2000 * 2 * 16 * 4
    assert report.bytes_kept == sum(kept) * 2 * 2 * 16 * 4
    assert report.bytes_dropped == report.bytes_full - report.bytes_kept
    assert report.bytes_returned >= 0.9 * report.bytes_dropped
    assert report.peak_bytes >= report.bytes_full
    assert report.final_bytes <= 1.1 * report.bytes_kept + 16 * 4096
    assert report.mass_kept_per_layer == [0.5] * 4
    assert report.sidecar_seconds == pytest.approx(5e-9)
    assert 0 < report.waiting_seconds <= report.engine_seconds
    assert engine.sessions[0].adopted_with == (report.bytes_returned, report.peak_bytes, report.final_bytes)
    assert engine.sessions[0].closed_with == [None]


def test_released_layers_lower_the_peak(tiny_llama, prompt):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(release_after=1))

    greedy(tiny_llama, prompt(2000), 2, past_key_values=cache)

    report = cache.report()
    assert report.peak_bytes < 0.7 * report.bytes_full + report.bytes_kept


def test_a_plan_to_keep_all_is_no_failure(tiny_llama, prompt):
    engine = FakeEngine(compress=False)
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    out = greedy(tiny_llama, prompt(50), 20, past_key_values=cache)

    assert out == plain(tiny_llama, prompt(50), 20)
    assert cache.report().failure is None
    assert cache.report().kept_whole == "fake keeps all of 50 tokens"
    assert cache.kept_positions(0) == [list(range(50))] * 2
    assert engine.sessions[0].closed_with == [None]


# ---------------------------------------------------------------- failing open


def test_a_sidecar_that_dies_before_it_released_anything_costs_nothing(tiny_llama, prompt):
    tokens = prompt(100)
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(fail_at_layer=1, release_after=3))

    out = greedy(tiny_llama, tokens, 20, past_key_values=cache)

    assert out == plain(tiny_llama, tokens, 20)
    assert cache.report().failure == "unavailable: the fake sidecar went away"
    assert cache.report().kept_per_layer == [100] * 4


@pytest.mark.parametrize("engine", [FakeEngine(fail_at_layer=3), FakeEngine(fail_at_finish=True)])
def test_released_layers_fall_back_to_their_staged_rows(tiny_llama, prompt, engine):
    tokens = prompt(130)
    cache = dkv.hf.Cache(tiny_llama, engine=engine)

    logits = step_by_step(tiny_llama, cache, tokens, 100)

    report = cache.report()
    assert report.failure is not None and not report.compressed
    assert report.kept_per_layer[3] == 100
    assert report.kept_per_layer[0] == len(last_and_every_third(0, 0, 100))
    assert cache.kept_positions(0) is None
    for layer in cache.layers:  # So that the reference knows them.
        if layer.prefix is not None:
            layer.positions = [last_and_every_third(layer.ordinal, head, 100) for head in range(2)]
    expected = logits_of_masked_model(tiny_llama, tokens, cache, 100)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert engine.sessions[0].closed_with == [report.failure]


def test_a_bad_wish_is_logged_loudly_and_raised_only_when_strict(tiny_llama, prompt, caplog):
    refusal = dkv.DkvError(dkv.Status.INVALID_ARGUMENT, "capacity 16 is smaller than the window 32")
    engine = FakeEngine(open_error=refusal)

    cache = dkv.hf.Cache(tiny_llama, policy="snapkv", capacity=16, engine=engine)
    out = greedy(tiny_llama, prompt(50), 5, past_key_values=cache)

    assert out == plain(tiny_llama, prompt(50), 5)
    assert cache.report().failure == "invalid_argument: capacity 16 is smaller than the window 32"
    assert any(record.levelname == "ERROR" and "capacity 16" in record.message for record in caplog.records)
    with pytest.raises(dkv.DkvError, match="capacity 16 is smaller than the window 32"):
        greedy(tiny_llama, prompt(50), 5, past_key_values=dkv.hf.Cache(tiny_llama, engine=engine, strict=True))


def test_more_tokens_than_the_prompt_was_said_to_have_end_the_session(tiny_llama, prompt):
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine, prompt_tokens=60)

    with torch.no_grad():
        tiny_llama(prompt(40), past_key_values=cache)
        tiny_llama(prompt(40), past_key_values=cache)

    assert cache.report().failure == "80 tokens came where the prompt was said to have 60"
    assert engine.sessions[0].closed_with == [cache.report().failure]


def test_a_dropped_cache_closes_its_session_and_gives_its_memory_back(tiny_llama, prompt):
    engine = FakeEngine()
    cache = dkv.hf.Cache(tiny_llama, engine=engine, prompt_tokens=100)
    with torch.no_grad():
        tiny_llama(prompt(60), past_key_values=cache)
    arena = cache._storage.arenas[0]
    assert arena.allocated_bytes > 0

    del cache
    gc.collect()

    assert engine.sessions[0].closed_with == ["the cache was dropped"]
    assert arena.allocated_bytes == 0


def test_only_the_tail_of_a_compressed_cache_can_be_cropped(tiny_llama, prompt):
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine())
    with torch.no_grad():
        tiny_llama(prompt(50), past_key_values=cache)
        tiny_llama(prompt(9), past_key_values=cache)

    cache.crop(-4)

    assert cache.get_seq_length() == 55
    with pytest.raises(ValueError, match="only the 5 tokens after its prompt"):
        cache.crop(-6)
