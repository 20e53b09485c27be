#!/usr/bin/env python3
"""The same work as dkv_gpu_bench's, in torch on a GPU: what a user would write. One line for each op and shape.

Two more are no op of dkv's. flash_window is scaled_dot_product_attention of the window's queries on all keys: it
reads K and V once and gives no scores; score cannot be had from it, but it tells what reading a cache with tensor
cores costs there. flash_prefill is that of all queries, causal: what a layer's attention costs during prefill, which
an op's time is to be held against. Both by the flash kernel, which there is not for f32.
"""
import argparse
import statistics
import sys
import time
from contextlib import nullcontext

import roofline

try:
    import torch
    import torch.nn.functional as F
except ImportError as why:
    print(f"not here\t{why}")
    sys.exit()

WINDOW = roofline.WINDOW
COLD_BYTES = 512 << 20
WARM_SECONDS = 0.5
RUNS = 20
RUNS_LEAST, SECONDS_MOST = 3, 1.0  # Of what takes long.
ACCUMULATE_TOKENS_MAX = 4096
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def window_scores(queries, keys, group, causal):
    """SnapKV's: the softmax of the window's queries over all keys, its mean over window and group."""
    expanded = keys.repeat_interleave(group, dim=0)
    logits = queries @ expanded.transpose(1, 2) / queries.shape[-1] ** 0.5
    logits[:, :, -WINDOW:] += causal
    weights = F.softmax(logits, dim=-1, dtype=torch.float32)[:, :, :-WINDOW].mean(dim=1)
    return weights.reshape(keys.shape[0], group, -1).mean(dim=1)


def attention_sums(queries, keys, group, causal):
    """H2O's: everything against everything, one head at a time."""
    sums = [F.softmax(queries[head] @ keys[head // group].T / queries.shape[-1] ** 0.5 + causal, dim=-1,
                      dtype=torch.float32).sum(dim=0)[:-WINDOW] for head in range(queries.shape[0])]
    return torch.stack(sums).reshape(keys.shape[0], group, -1).mean(dim=1)


def key_difference(keys):
    directions = F.normalize(keys, dim=-1).mean(dim=1, keepdim=True)
    return -F.cosine_similarity(keys, directions, dim=-1)


def tally(layers, total):
    """How many of the largest scores of all layers are each layer's and head's."""
    ids = torch.topk(torch.cat(layers).flatten(), total, sorted=False).indices
    return torch.bincount(ids // layers[0].shape[1], minlength=len(layers) * layers[0].shape[0])


HAS_GROUPS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 5)


def attention(queries, keys, group, device, causal):
    """By the flash kernel on a GPU, or refused: never slowly by another one. One head of keys for a group of
    queries', where torch can; else keys are expanded, untimed."""
    kernel = nullcontext
    if device == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel
        kernel = lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    seen = (keys if HAS_GROUPS else keys.repeat_interleave(group, dim=0))[None]
    more = {"enable_gqa": True} if HAS_GROUPS else {}

    def run():
        with kernel():
            return F.scaled_dot_product_attention(queries[None], seen, seen, is_causal=causal, **more)
    return run


def works(shape, dtype, tokens, device):
    """{op: what to run}, made when it is asked for: (op, maker)."""
    group = shape.q_heads // shape.kv_heads
    generator = torch.Generator(device).manual_seed(1)
    random = lambda *extents: torch.randn(*extents, device=device, generator=generator)
    keys = random(shape.kv_heads, tokens, shape.head_dim).to(dtype)
    queries = random(shape.q_heads, WINDOW, shape.head_dim).to(dtype)
    scores = torch.exp(random(shape.layers, shape.kv_heads, tokens - WINDOW) * 2 - 9)
    keep = tokens // 4
    kept = torch.rand(shape.kv_heads, tokens, device=device, generator=generator).topk(keep).indices.sort().values
    rows = kept[:, :, None].expand(-1, -1, shape.head_dim)
    mask = lambda extent: torch.full((extent, extent), float("-inf"), device=device, dtype=dtype).triu(1)

    def score():
        causal = mask(WINDOW)
        return lambda: window_scores(queries, keys, group, causal)

    def accumulate():
        everyone, causal = random(shape.q_heads, tokens, shape.head_dim).to(dtype), mask(tokens)
        return lambda: attention_sums(everyone, keys, group, causal)

    def flash(asking, causal):
        everyone = random(shape.q_heads, asking, shape.head_dim).to(dtype)
        return attention(everyone, keys, group, device, causal)

    yield "score", score
    if dtype != torch.float32:  # There is no such kernel.
        yield "flash_window", lambda: flash(WINDOW, False)
        yield "flash_prefill", lambda: flash(tokens, True)
    yield "key_norm", lambda: lambda: -torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    yield "key_diff", lambda: lambda: key_difference(keys)
    yield "pool", lambda: lambda: F.max_pool1d(scores[0], 7, 1, 3)
    yield "select", lambda: lambda: scores[0].topk(keep)
    yield "sum", lambda: lambda: scores[0].sum(dim=-1, dtype=torch.float64)
    yield "tally", lambda: lambda: tally(list(scores), shape.layers * shape.kv_heads * keep)
    yield "gather", lambda: lambda: torch.gather(keys, 1, rows)
    if tokens <= ACCUMULATE_TOKENS_MAX:
        yield "accumulate", accumulate


def seconds_of(work, device, runs, cold):
    """The median, each run by itself behind a read of `cold` that leaves no input in a cache; as dkv_gpu_bench."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    begin = time.perf_counter()
    work()
    wait()
    took = time.perf_counter() - begin
    if device != "cuda":
        return took
    runs = max(RUNS_LEAST, min(runs, int(SECONDS_MOST / max(took, 1e-6))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for begin, end in events:
        cold.sum()
        begin.record()
        work()
        end.record()
    wait()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def measure(model, dtype, tokens, device, tiny):
    cold = torch.ones(0 if tiny else COLD_BYTES // 4, device=device)
    until = time.perf_counter() + (0 if tiny else WARM_SECONDS)
    while time.perf_counter() < until:  # Clocks rise slowly.
        cold.sum().item()
    for op, make in works(roofline.MODELS[model], DTYPES[dtype], tokens, device):
        try:
            seconds = seconds_of(make(), device, 1 if tiny else RUNS, cold)
            print(f"op\t{op}\t{model}\t{dtype}\t{tokens}\t{seconds:.9g}", flush=True)
        except RuntimeError as error:  # Out of memory, too: expanded keys, logits of all queries; dkv has neither.
            why = str(error).splitlines()[0].replace("\t", " ")
            print(f"left out\t{op} {model} {dtype} {tokens}: {why}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the shapes of dkv_gpu_bench --tiny")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"not here\ttorch {torch.__version__} sees no GPU")
        return
    shapes = ([("tiny", "bf16", 256), ("tiny", "f32", 64)] if args.tiny else
              [(model, dtype, tokens) for dtype in DTYPES for tokens in (4096, 32768, 131072)
               for model in ("smollm2-135m", "llama-3-8b")])
    if args.device == "cpu":
        torch.set_num_threads(1)  # Tiny shapes: threads would wait for each other.
    name = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(f"torch\t{torch.__version__}\t{name}")
    with torch.inference_mode():
        for model, dtype, tokens in shapes:
            measure(model, dtype, tokens, args.device, args.tiny)


if __name__ == "__main__":
    main()
