"""SmolLM2 with its real weights beside dkvd: a prompt for each line of stdin, and whether its text is right.

    python hf_engine.py ENDPOINT

The rows that each layer's cache has are found in the full cache's; right_text.py says what text is right for them.
"""

from __future__ import annotations

import json
import sys

import torch
from right_text import NEW_TOKENS, is_right, prompt_of
from transformers import DynamicCache

import dkv.hf
from dkv.hf import weights


def full_rows(model, prompt):
    cache = DynamicCache()
    with torch.no_grad():
        model(prompt, past_key_values=cache, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def kept_positions(layer, keys, values) -> tuple[list[torch.Tensor] | None, int]:
    """Of each KV head, None where the layer is whole; and how many rows are not the prompt's."""
    if layer.prefix is None:
        return None, 0
    found, wrong = [], 0
    for head, length in enumerate(layer.prefix.lengths):
        own_keys, own_values = layer.prefix.head_keys(head)[:length], layer.prefix.head_values(head)[:length]
        at = torch.cdist(own_keys.float(), keys[head].float()).argmin(1)
        apart = torch.maximum((own_keys - keys[head][at]).abs().amax(1), (own_values - values[head][at]).abs().amax(1))
        wrong += int((apart > 2e-3).sum()) + length - len(set(at.tolist()))
        if layer.positions:
            wrong += sorted(at.tolist()) != sorted(layer.positions[head])
        found.append(at)
    return found, wrong


def run(model, prompt, rows, endpoint: str, wish: dict) -> dict:
    cache = dkv.hf.Cache(model, endpoint=endpoint, **wish)
    with torch.no_grad():
        text = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False,
            past_key_values=cache,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
    report = cache.report()
    found = [kept_positions(layer, *full) for layer, full in zip(cache.layers, rows)]
    forms = ["full" if at is None else "packed" if layer.positions else "staged" for layer, (at, _) in zip(cache.layers, found)]
    wrong = sum(count for _, count in found)
    if not is_right(model, prompt, text, [at for at, _ in found]):
        wrong += 1
    return {
        "status": "ok" if report.compressed else "failed",
        "error": report.failure or report.kept_whole or "",
        "committed": report.compressed,
        "rows_wrong": wrong,
        "forms": forms,
    }


def main() -> None:
    torch.set_num_threads(1)  # The other cores are dkvd's and other engines'.
    model, tokenizer = weights.load_smollm2()
    prompt = prompt_of(tokenizer)
    rows = full_rows(model, prompt)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        outcome = run(model, prompt, rows, sys.argv[1], json.loads(line))
        print(json.dumps(outcome), flush=True)
        print(json.dumps({"paused": True}), flush=True)


if __name__ == "__main__":
    main()
