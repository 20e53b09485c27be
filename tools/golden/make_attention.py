#!/usr/bin/env python3
"""Writes tests/data/attention_ref.json: the window's attention as torch computes it on a CPU, in three dtypes.

Inputs are small multiples of 1/8, so that every product is exact whatever the order: what is compared is
where the published codes round. Usage: make_attention.py > tests/data/attention_ref.json
"""
import json
import math

import torch


def window_sums(queries, keys, group):
    """Steps 3 to 6 of the release: scores in the dtype, softmax in float32 cast back, summed over the window."""
    dtype, (window, tokens) = queries.dtype, (queries.shape[1], keys.shape[1])
    scores = queries @ keys.repeat_interleave(group, 0).transpose(1, 2) / math.sqrt(queries.shape[2])
    mask = torch.full((window, window), torch.finfo(dtype).min, dtype=dtype).triu(1)
    scores[:, :, tokens - window :] += mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return weights[:, :, : tokens - window].sum(dim=-2)


def main():
    torch.manual_seed(1)
    cases = []
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        for kv_heads, group, tokens, window, dim in ((1, 2, 60, 8, 8), (2, 3, 50, 37, 6)):
            queries = torch.randint(-16, 17, (kv_heads * group, window, dim)) / 8
            keys = torch.randint(-16, 17, (kv_heads, tokens, dim)) / 8
            sums = window_sums(queries.to(dtype), keys.to(dtype), group)
            cases.append(
                {
                    "dtype": name, "kv_heads": kv_heads, "group": group, "tokens": tokens, "window": window,
                    "head_dim": dim, "queries_x8": (queries * 8).int().flatten().tolist(),
                    "keys_x8": (keys * 8).int().flatten().tolist(), "sums": sums.double().flatten().tolist(),
                }
            )
    print(json.dumps({"torch": torch.__version__, "cases": cases}))


if __name__ == "__main__":
    main()
