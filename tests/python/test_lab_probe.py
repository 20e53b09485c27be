"""The batched forward against a dense one in which every query has its own mask."""

import pytest
import torch
from conftest import make_tiny_llama

from dkv_lab import scores
from dkv_lab.probe import Probe, ProbeError, Rankings, Variant

WINDOW = 8


def make_tiny_gemma(sliding: int = 12):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=sliding,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=20,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return Gemma3ForCausalLM(config).eval()


def make_tiny_gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(2)
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=12,
        attn_logit_softcapping=2.0,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    config._attn_implementation = "eager"  # transformers 4 leaves the softcap out otherwise.
    return Gemma2ForCausalLM(config).eval()


def make_tiny_gpt_oss(layer_types=("sliding_attention", "full_attention") * 2):
    """With sinks that count."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(3)
    config = GptOssConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=12,
        layer_types=list(layer_types),
        num_local_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.tensor([3.0, 0.0, -1.0, 6.0]))
    return model


MODELS = {
    "llama": lambda: make_tiny_llama(kv_heads=2),
    "llama without groups": lambda: make_tiny_llama(kv_heads=6),
    "gemma3": make_tiny_gemma,
    "gemma3 whose sliding window covers the prompt": lambda: make_tiny_gemma(64),
    "gemma2 with capped logits": make_tiny_gemma2,
    "gpt-oss with learned sinks": make_tiny_gpt_oss,
}


def ids(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(2, 512, (count,), generator=torch.Generator().manual_seed(seed))


def dense_logits(model, tokens, masks, slidings):
    """Every layer with its own [Hq, n, n] mask, through an attention function of the test's own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        logits = query @ key.transpose(2, 3) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~masks[module.layer_idx], float("-inf"))
        if s_aux is not None:
            logits = torch.cat([logits, s_aux[None, :, None, None].expand(*logits.shape[:3], 1)], -1)
        weights = logits.softmax(-1)[..., : key.shape[2]]
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("test_dense", attend)
    AttentionMaskInterface.register("test_dense", lambda *args, **kwargs: None)
    model.set_attn_implementation("test_dense")
    with torch.inference_mode():
        return model(input_ids=tokens[None], use_cache=False).logits[0]


def masks_for(variant, rankings, prompt, answer, slidings, group):
    total = prompt.tokens + answer
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    masks, ordinal = {}, 0
    for index, sliding in enumerate(slidings):
        if sliding is not None:
            masks[index] = (causal & ~causal.tril(-sliding))[None]
            continue
        mask = causal.repeat(prompt.kv_heads * group, 1, 1)
        for head in range(prompt.kv_heads):
            dropped = rankings.orders[variant.ranking][ordinal][head][int(variant.budgets[ordinal, head]) :]
            for query_head in range(head * group, (head + 1) * group):
                mask[query_head, prompt.tokens :, dropped] = False
        masks[index] = mask
        ordinal += 1
    return masks


def random_budgets(prompt, seed):
    shape = (len(prompt.compressed), prompt.kv_heads)
    return torch.randint(0, prompt.prefix + 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_every_variant_scores_as_under_a_dense_mask(name):
    model = MODELS[name]()
    probe = Probe(model, WINDOW)
    prompt = probe.prefill(ids(50), accumulate=True)
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt))
    variants = [Variant(f"{r} {i}", random_budgets(prompt, i), r) for i in range(4) for r in rankings.orders]
    variants.append(Variant("whole", torch.full_like(variants[0].budgets, prompt.prefix)))
    variants.append(Variant("window alone", torch.zeros_like(variants[0].budgets)))
    answer = ids(9, seed=5)

    outcome = probe.force(prompt, answer, variants, rankings, compare=True)

    group = prompt.layers[0].group
    full = None
    for row, variant in reversed(list(enumerate(variants))):
        masks = masks_for(variant, rankings, prompt, answer.numel(), probe.slidings, group)
        logits = dense_logits(model, torch.cat([ids(50), answer]), masks, probe.slidings)
        expected = logits[49:-1].log_softmax(-1)
        if variant.name == "whole":
            full = expected
        torch.testing.assert_close(
            outcome.logprob[row], expected.gather(1, answer[:, None])[:, 0], atol=2e-4, rtol=1e-3
        )
        if full is not None:
            kl = (full.exp() * (full - expected)).sum(-1)
            torch.testing.assert_close(outcome.kl[row], kl.clamp_min(0), atol=2e-4, rtol=1e-3)
            assert torch.equal(outcome.agree[row], expected.argmax(-1) == full.argmax(-1))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_the_models_own(name):
    model = MODELS[name]()
    model.set_attn_implementation("eager")
    expected = model.generate(ids(40)[None], max_new_tokens=16, do_sample=False)[0, 40:]
    probe = Probe(model, WINDOW)

    assert torch.equal(probe.greedy(probe.prefill(ids(40)), 16), expected)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss with learned sinks"])
def test_the_accumulated_attention_is_that_of_all_queries(name):
    model = MODELS[name]()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(ids(300)[None], output_attentions=True).attentions
    prompt = Probe(model, WINDOW).prefill(ids(300), accumulate=True)

    for index in prompt.compressed:
        layer = prompt.layers[index]
        expected = attentions[index][0].view(prompt.kv_heads, layer.group, 300, 300).mean(1).sum(1)
        torch.testing.assert_close(layer.accumulated, expected, atol=1e-4, rtol=1e-3)


def test_variants_may_be_split_over_forwards(monkeypatch):
    probe = Probe(make_tiny_llama(), WINDOW)
    prompt = probe.prefill(ids(60))
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt))
    variants = [Variant(str(i), random_budgets(prompt, i)) for i in range(7)]
    whole = probe.force(prompt, ids(6), variants, rankings, compare=True)

    monkeypatch.setattr("dkv_lab.probe._LOGIT_FLOATS", 512 * 5 * 2)
    monkeypatch.setattr("dkv_lab.probe._CHUNK_FLOATS", 1000)
    split = probe.force(prompt, ids(6), variants, rankings, compare=True)

    torch.testing.assert_close(split.logprob, whole.logprob)
    torch.testing.assert_close(split.kl, whole.kl, atol=1e-5, rtol=1e-4)


def test_a_budget_beyond_the_prefix_is_refused():
    probe = Probe(make_tiny_llama(), WINDOW)
    prompt = probe.prefill(ids(30))
    variant = Variant("greedy", torch.full((4, 2), 23))

    with pytest.raises(ProbeError, match=r"greedy: a budget is outside 0 … 22"):
        probe.force(prompt, ids(3), [variant], Rankings())


def test_a_prompt_within_the_window_is_refused():
    with pytest.raises(ProbeError, match="has 8 tokens and the window 8"):
        Probe(make_tiny_llama(), WINDOW).prefill(ids(8))


def test_a_model_whose_layers_all_slide_is_refused():
    model = make_tiny_gemma()
    model.config.layer_types = ["sliding_attention"] * 6

    with pytest.raises(ProbeError, match="no layer with full attention"):
        Probe(model, WINDOW)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"position_bias": torch.zeros(1)}, "the attention of LlamaAttention is given position_bias, which dkv does not"),
        ({"s_aux": torch.zeros(4)}, r"the attention of LlamaAttention is given s_aux of shape \[4\], not \[6\]"),
    ],
)
def test_arguments_of_attention_that_are_not_understood_are_refused_by_name(given, words):
    probe = Probe(make_tiny_llama(), WINDOW)

    with pytest.raises(ProbeError, match=f"this model cannot be probed: {words}"):
        probe._forward(ids(30)[None], 0, object(), **given)


def test_models_that_attend_otherwise_are_refused():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DiffLlamaConfig, DiffLlamaForCausalLM

    tiny = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                pad_token_id=0, eos_token_id=None)  # fmt: skip
    latent = dict(num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=16,
                  v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
                  moe_intermediate_size=32, first_k_dense_replace=1)  # fmt: skip
    twice = DiffLlamaForCausalLM(DiffLlamaConfig(num_key_value_heads=2, **tiny)).eval()
    shapes = DeepseekV3ForCausalLM(DeepseekV3Config(**latent, **tiny)).eval()

    for model, words in ((twice, "cannot be probed: "), (shapes, "K is .* they must have one shape")):
        with pytest.raises(ProbeError, match=words):
            Probe(model, WINDOW).prefill(ids(30))
