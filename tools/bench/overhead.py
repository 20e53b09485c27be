#!/usr/bin/env python3
"""What dkv costs a real prefill: SmolLM2-135M, plain transformers and dkv in turn, ratio pair by pair.

    tools/bench/overhead.py --bin build/release/bin [--tokens 4096] [--pairs 5] [--policy dynamickv]

The sidecar works on the same cores as the engine: its time is in the ratio. Prints each pair, then the
median ratio; --json writes one object.
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
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--policy", default="dynamickv")
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(options: argparse.Namespace, endpoint: str) -> list[dict]:
    import torch
    import transformers

    import dkv.hf
    from dkv.hf import weights

    model, tokenizer = weights.load_smollm2()
    text = pathlib.Path("/usr/share/common-licenses/GPL-3").read_text()
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : options.tokens]
    if ids.shape[1] < options.tokens:
        raise SystemExit(f"overhead: the text has {ids.shape[1]} tokens, not {options.tokens}")

    def seconds(cache) -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            model(ids, past_key_values=cache, logits_to_keep=1)
        return time.perf_counter() - begin

    def pair() -> dict:
        plain = seconds(transformers.DynamicCache(config=model.config))
        cache = dkv.hf.Cache(
            model, policy=options.policy, capacity=options.capacity, endpoint=endpoint, timeout_s=60
        )
        compressed = seconds(cache)
        report = cache.report()
        if report.failure:
            raise SystemExit(f"overhead: not compressed: {report.failure}")
        return {
            "plain_seconds": plain,
            "dkv_seconds": compressed,
            "ratio": compressed / plain,
            "engine_seconds": report.engine_seconds,
            "sidecar_seconds": report.sidecar_seconds,
        }

    pair()  # Warm-up.
    return [pair() for _ in range(options.pairs)]


def main() -> None:
    options = parse_arguments()
    os.environ["DKV_BIN_DIR"] = str(options.bin)
    os.environ.setdefault("DKV_LIBRARY", str(options.bin.parent / "lib" / "libdkv.so"))
    from dkv_lab.sidecar import private_sidecar

    with private_sidecar() as endpoint:
        pairs = measure(options, endpoint)
    median = statistics.median(pair["ratio"] for pair in pairs)
    if options.json:
        print(json.dumps({"tokens": options.tokens, "policy": options.policy, "pairs": pairs, "median_ratio": median}))
        return
    for pair in pairs:
        print(
            f"plain {pair['plain_seconds']:6.2f} s   dkv {pair['dkv_seconds']:6.2f} s   ratio {pair['ratio']:.3f}   "
            f"engine's thread in dkv {pair['engine_seconds']:.2f} s   sidecar busy {pair['sidecar_seconds']:.2f} s"
        )
    print(f"{options.policy}, {options.tokens} tokens: median ratio {median:.3f} of {len(pairs)} pairs")


if __name__ == "__main__":
    main()
