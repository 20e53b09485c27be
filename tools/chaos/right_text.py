"""SmolLM2's prompt of a case, and whether what an engine said to it is right.

Right is the text of exactly the rows that each layer's cache has: plain transformers, with every other row masked out,
must choose the same tokens.
"""

from __future__ import annotations

import torch

PROMPT_TOKENS, NEW_TOKENS = 256, 5
TIE = 2e-3  # Two logits that are closer may change places: float32 sums in another order.
TEXT = "The sidecar borrows keys and values of layer {0} and finds out which {1} tokens matter for question {2}. "


def prompt_of(tokenizer) -> torch.Tensor:
    text = "".join(TEXT.format(at, at * at % 97, at % 7) for at in range(60))
    return tokenizer(text, return_tensors="pt")["input_ids"][:, :PROMPT_TOKENS]


def is_right(model, prompt, text: list[int], kept: list, after: int = 1) -> bool:
    """Whether greedy decoding over the rows that are kept says this, by plain attention with masks.

    kept: of each layer, positions of each KV head; None: all. after: tokens that were said before rows were dropped.
    """
    whole = torch.cat([prompt, torch.tensor([text])], 1)[:, :-1]
    total, count = whole.shape[1], prompt.shape[1]
    groups = model.config.num_attention_heads // model.config.num_key_value_heads

    def masked(module, args, kwargs):
        positions = kept[module.layer_idx]
        mask = torch.full((1, model.config.num_attention_heads, total, total), float("-inf")).triu(1)
        for head, at in enumerate(positions or []):
            dropped = torch.ones(count, dtype=torch.bool)
            dropped[at] = False
            rows = slice(head * groups, (head + 1) * groups)
            mask[:, rows, count + after - 1 :, :count].masked_fill_(dropped, float("-inf"))
        return args, {**kwargs, "attention_mask": mask}

    hooks = [layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True) for layer in model.model.layers]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            logits = model(whole, use_cache=False).logits[0, count - 1 :]
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    best = logits.max(1).values
    return bool(((best - logits[torch.arange(len(text)), text]) < TIE).all())
