#!/usr/bin/env python3
"""The same work as dkv_gpu_bench's, in torch on a GPU: what a user would write. One line for each op and shape.

flash is scaled_dot_product_attention of the window's queries on all keys: it reads K and V once and gives no
scores; score cannot be had from it, but it tells what reading a cache with tensor cores costs there.
"""
import argparse
import sys
import time

import torch

WINDOW = 32
COLD_BYTES = 512 << 20
MODELS = {"smollm2-135m": (9, 3, 64), "llama-3-8b": (32, 8, 128), "tiny": (4, 2, 64)}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def window_scores(queries, keys, group):
    """SnapKV's: the softmax of the window's queries over all keys, its mean over window and group."""
    expanded = keys.repeat_interleave(group, dim=0)
    logits = queries @ expanded.transpose(1, 2) / queries.shape[-1] ** 0.5
    causal = torch.full((WINDOW, WINDOW), float("-inf"), device=logits.device, dtype=logits.dtype).triu(1)
    logits[:, :, -WINDOW:] += causal
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32)[:, :, :-WINDOW].mean(dim=1)
    return weights.reshape(keys.shape[0], group, -1).mean(dim=1)


def key_difference(keys):
    directions = torch.nn.functional.normalize(keys.float(), dim=-1)
    return -torch.nn.functional.cosine_similarity(keys.float(), directions.mean(dim=1, keepdim=True), dim=-1)


def flash(queries, keys, group):
    expanded = keys.repeat_interleave(group, dim=0)[None]
    return torch.nn.functional.scaled_dot_product_attention(queries[None], expanded, expanded)


def works(model, dtype, tokens, device, turns):
    """{op: what to run in turn `i`}."""
    q_heads, kv_heads, head_dim = MODELS[model]
    group = q_heads // kv_heads
    generator = torch.Generator(device).manual_seed(1)
    keys = [torch.randn(kv_heads, tokens, head_dim, device=device, generator=generator).to(dtype) for _ in range(turns)]
    queries = torch.randn(q_heads, WINDOW, head_dim, device=device, generator=generator).to(dtype)
    scores = torch.rand(kv_heads, tokens - WINDOW, device=device, generator=generator)
    kept = torch.rand(kv_heads, tokens, device=device, generator=generator).topk(tokens // 4).indices
    rows = kept[:, :, None].expand(-1, -1, head_dim)
    return {
        "score": lambda i: window_scores(queries, keys[i], group),
        "flash": lambda i: flash(queries, keys[i], group),
        "key_norm": lambda i: -torch.linalg.vector_norm(keys[i], dim=-1, dtype=torch.float32),
        "key_diff": lambda i: key_difference(keys[i]),
        "pool": lambda i: torch.nn.functional.max_pool1d(scores, 7, 1, 3),
        "select": lambda i: scores.topk(tokens // 4),
        "sum": lambda i: scores.sum(dim=-1, dtype=torch.float64),
        "gather": lambda i: torch.gather(keys[i], 1, rows),
    }


def seconds_of(work, device, runs, turns):
    work(0)
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for run in range(runs):
            work(run % turns)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / runs
    begin = time.perf_counter()
    for run in range(runs):
        work(run % turns)
    return (time.perf_counter() - begin) / runs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the shapes of dkv_gpu_bench --tiny")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    shapes = ([("tiny", "f16", 256), ("tiny", "f32", 64)] if args.tiny else
              [(model, dtype, tokens) for dtype in DTYPES for tokens in (4096, 32768, 131072)
               for model in ("smollm2-135m", "llama-3-8b")])
    print(f"torch\t{torch.__version__}")
    for model, dtype, tokens in shapes:
        _, kv_heads, head_dim = MODELS[model]
        bytes_ = kv_heads * tokens * head_dim * DTYPES[dtype].itemsize
        turns = 1 if args.tiny else min(16, COLD_BYTES // bytes_ + 1)
        for op, work in works(model, DTYPES[dtype], tokens, args.device, turns).items():
            try:
                seconds = seconds_of(work, args.device, 1 if args.tiny else 20, turns)
            except torch.cuda.OutOfMemoryError:
                continue  # Expanded keys and logits of all queries: dkv has neither.
            print(f"op\t{op}\t{model}\t{dtype}\t{tokens}\t{seconds:.9g}", flush=True)


if __name__ == "__main__":
    main()
