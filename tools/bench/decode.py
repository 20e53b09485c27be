#!/usr/bin/env python3
"""What unequal heads cost in decode: SmolLM2-135M, ms per token, one budget everywhere (snapkv) against budgets of
their own for every head (dynamickv, layer-head), at equal bytes.

    tools/bench/decode.py --bin build/release/bin [--tokens 4096] [--capacity 512] [--pairs 20] [--steps 8] [--threads 1]

Both caches live in one process and take turns, a few tokens each: the ratio of each turn is a pair. Prints the
medians and the interquartile range of the ratio; --json writes one object. One thread is timed by its own clock,
so that a busy machine gives the same figures; several by the wall's.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "protocol" / "python"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of dkvd")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8, help="tokens of each cache's turn")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in decode")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(options: argparse.Namespace, endpoint: str) -> dict:
    import torch

    import dkv.hf
    from dkv.hf import weights

    model, tokenizer = weights.load_smollm2()
    text = pathlib.Path("/usr/share/common-licenses/GPL-3").read_text()
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : options.tokens]

    def prefilled(**wish):
        cache = dkv.hf.Cache(model, capacity=options.capacity, endpoint=endpoint, timeout_s=120, **wish)
        model(ids, past_key_values=cache, logits_to_keep=1)
        report = cache.report()
        if not report.compressed:
            raise SystemExit(f"decode: not compressed: {report.failure or report.kept_whole}")
        return cache

    clock = time.thread_time if options.threads == 1 else time.perf_counter

    def ms_per_token(cache) -> float:
        begin = clock()
        for step in range(options.steps):
            model(ids[:, step : step + 1], past_key_values=cache)
        return (clock() - begin) * 1e3 / options.steps

    with torch.inference_mode():
        uniform = prefilled(policy="snapkv")
        ragged = prefilled(policy="dynamickv", granularity="layer-head")
        assert uniform.report().bytes_kept == ragged.report().bytes_kept
        torch.set_num_threads(options.threads)
        ms_per_token(uniform), ms_per_token(ragged)  # Warm-up.
        turns = []
        for turn in range(options.pairs):  # Who goes first changes.
            order = (uniform, ragged) if turn % 2 == 0 else (ragged, uniform)
            taken = {id(cache): ms_per_token(cache) for cache in order}
            turns.append((taken[id(uniform)], taken[id(ragged)]))
    ratios = [second / first for first, second in turns]
    quartiles = statistics.quantiles(ratios, n=4)
    lengths = ragged.report().kept_per_head
    return {
        "tokens": options.tokens, "capacity": options.capacity, "bytes_kept": uniform.report().bytes_kept,
        "shortest_head": min(map(min, lengths)), "longest_head": max(map(max, lengths)),
        "uniform_ms": statistics.median(first for first, _ in turns),
        "ragged_ms": statistics.median(second for _, second in turns),
        "median_ratio": statistics.median(ratios), "ratio_quartiles": [quartiles[0], quartiles[2]],
        "threads": options.threads, "pairs": options.pairs, "steps": options.steps,
    }


def main() -> None:
    options = parse_arguments()
    os.environ["DKV_BIN_DIR"] = str(options.bin)
    os.environ.setdefault("DKV_LIBRARY", str(options.bin.parent / "lib" / "libdkv.so"))
    from dkv_lab.sidecar import private_sidecar

    with private_sidecar() as endpoint:
        found = measure(options, endpoint)
    if options.json:
        print(json.dumps(found))
        return
    low, high = found["ratio_quartiles"]
    print(
        f"{found['tokens']} tokens cut to {found['capacity']}; heads of {found['shortest_head']} to "
        f"{found['longest_head']} tokens, {found['bytes_kept'] / 2**20:.1f} MiB either way\n"
        f"uniform {found['uniform_ms']:.2f} ms/token   ragged {found['ragged_ms']:.2f} ms/token   "
        f"median ratio {found['median_ratio']:.3f} ({low:.3f} … {high:.3f}) of {found['pairs']} pairs"
    )


if __name__ == "__main__":
    main()
