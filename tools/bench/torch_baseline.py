#!/usr/bin/env python3
"""The same work as dkv_bench, written in torch as the released codes of the papers write it: repeat_kv, the
whole [heads, window, tokens] softmax, topk, index gathers. Prints JSON: {benchmark name: seconds}."""
import argparse
import json
import re
import time

import torch
import torch.nn.functional as F

WINDOW = 32
CAPACITY = 512
MODELS = {  # As in bench.h: layers, q_heads, kv_heads, head_dim.
    "smollm2-135m": (30, 9, 3, 64),
    "llama-3-8b": (32, 32, 8, 128),
}
TOKENS = (4096, 32768)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SOURCE_BYTES = 256 << 20


def attention(scores_shape):
    return torch.exp(torch.randn(scores_shape) * 2 - 9)


def score(model, dtype, tokens):
    _, q_heads, kv_heads, head_dim = model
    queries = torch.randn(q_heads, WINDOW, head_dim).to(dtype)
    keys = torch.randn(kv_heads, tokens, head_dim).to(dtype)
    mask = torch.full((WINDOW, WINDOW), float("-inf")).triu(1)

    def run():
        repeated = keys.repeat_interleave(q_heads // kv_heads, dim=0)
        logits = torch.matmul(queries, repeated.transpose(1, 2)) / head_dim**0.5
        logits[:, :, -WINDOW:] += mask.to(dtype)
        p = F.softmax(logits, dim=-1, dtype=torch.float32)
        return p[:, :, :-WINDOW].mean(1).view(kv_heads, -1, tokens - WINDOW).mean(1)

    return run


def accumulate(model, dtype, tokens):
    """As H2O: everything against everything, here at least one head at a time."""
    _, q_heads, kv_heads, head_dim = model
    queries = torch.randn(q_heads, tokens, head_dim).to(dtype)
    keys = torch.randn(kv_heads, tokens, head_dim).to(dtype)
    mask = torch.full((tokens, tokens), float("-inf"), dtype=dtype).triu(1)

    def run():
        sums = []
        for head in range(q_heads):
            logits = queries[head] @ keys[head * kv_heads // q_heads].T / head_dim**0.5 + mask
            sums.append(F.softmax(logits, dim=-1, dtype=torch.float32).sum(0))
        return torch.stack(sums)[:, :-WINDOW].view(kv_heads, -1, tokens - WINDOW).mean(1)

    return run


def key_norm(model, dtype, tokens):
    keys = torch.randn(model[2], tokens, model[3]).to(dtype)
    return lambda: -keys.norm(dim=-1)


def key_diff(model, dtype, tokens):
    keys = torch.randn(model[2], tokens, model[3]).to(dtype)

    def run():
        mean = F.normalize(keys, dim=-1).mean(1, keepdim=True)
        return -F.cosine_similarity(keys, mean, dim=-1)

    return run


def pool(function):
    def make(model, dtype, tokens):
        scores = attention((model[2], tokens))
        return lambda: function(scores, 7, stride=1, padding=3)

    return make


def select(model, dtype, tokens):
    scores = attention((model[2], tokens))
    keep = min(10 * (CAPACITY - WINDOW), tokens // 2)
    return lambda: torch.topk(scores, keep, dim=-1)


def add_up(model, dtype, tokens):
    scores = attention((model[2], tokens))
    return lambda: scores.sum(-1, dtype=torch.float64)


def tally(model, dtype, tokens):
    layers, _, kv_heads, _ = model
    scores = [attention((kv_heads, tokens)) for _ in range(layers)]
    total = layers * kv_heads * (CAPACITY - WINDOW)

    def run():
        ids = torch.topk(torch.cat(scores).flatten(), total, sorted=False).indices
        return torch.bincount(ids // tokens, minlength=layers * kv_heads)

    return run


def gather(model, dtype, tokens):
    _, _, kv_heads, head_dim = model
    source = torch.randn(kv_heads, tokens, head_dim).to(dtype)
    copies = [source.clone() for _ in range(SOURCE_BYTES // (source.numel() * source.element_size()) + 1)]
    keep = tokens // 4
    ids = torch.stack([torch.randperm(tokens)[:keep].sort().values for _ in range(kv_heads)])
    ids = ids[:, :, None].expand(-1, -1, head_dim)
    outs = [torch.empty(kv_heads, keep, head_dim, dtype=dtype) for _ in copies]
    for out in outs:
        out.zero_()
    state = {"layer": 0}

    def run():
        layer = state["layer"] = (state["layer"] + 1) % len(copies)
        torch.gather(copies[layer], 1, ids, out=outs[layer])

    return run


OPS = {
    "score": (score, DTYPES),
    "accumulate": (accumulate, DTYPES),
    "key_norm": (key_norm, DTYPES),
    "key_diff": (key_diff, DTYPES),
    "pool_max": (pool(lambda s, *a, **k: F.max_pool1d(s, *a, **k)), ("f32",)),
    "pool_avg": (pool(lambda s, *a, **k: F.avg_pool1d(s, *a, **k)), ("f32",)),
    "select": (select, ("f32",)),
    "sum": (add_up, ("f32",)),
    "tally": (tally, ("f32",)),
    "gather": (gather, DTYPES),
}


def seconds_per_call(run, clock, least):
    run()
    calls, begin = 0, clock()
    while clock() - begin < least or calls < 3:
        run()
        calls += 1
    return (clock() - begin) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--filter", default="", help="a regular expression, as dkv_bench's")
    parser.add_argument("--min-time", type=float, default=0.3, metavar="SECONDS")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    # As dkv_bench: one thread by its own clock, several by the wall's.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seconds = {}
    with torch.inference_mode():
        for op, (make, dtypes) in OPS.items():
            for model_name, model in MODELS.items():
                for dtype in dtypes:
                    for tokens in TOKENS[:1] if op == "accumulate" else TOKENS:
                        name = f"{op}/{model_name}/{dtype}/{tokens}"
                        if re.search(args.filter, name):
                            run = make(model, DTYPES[dtype], tokens)
                            seconds[name] = seconds_per_call(run, clock, args.min_time)
    print(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()
