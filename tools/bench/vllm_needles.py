#!/usr/bin/env python3
"""dkv's needles through a real vLLM and through transformers, on the same token ids: who still finds what was hidden.

    make bench-vllm-needles BENCH_VLLM='--needles 40 --policies snapkv,auto --capacity 128,256'

Runs in vLLM's environment (tools/vllm/install.sh). An answer counts as found when greedy decoding says it token by
token, and only prompts that the full cache answers are counted. Here vLLM waits for each plan at the end of the
prefill, which it never does otherwise: so both engines say the answer's first token from the prefill, and the others
from what was kept.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "vllm")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--needles", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1024, help="of each prompt")
    parser.add_argument("--policies", default="snapkv,auto")
    parser.add_argument("--capacity", default="128,256")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of prompts")
    return parser.parse_args()


def answers_of_vllm(folder: str, endpoint: str, rows: list, wishes: dict) -> dict:
    """(wish, row's key) → (tokens said, rows kept per layer and KV head)."""
    from engine import Engine
    from processes import waited_for

    longest = max(len(row.tokens) + len(row.answer) for row in rows)
    # Layers that share a block table would keep more rows than transformers does.
    engine = Engine(folder, endpoint, {"layers_per_group": 1}, max_model_len=longest)
    usual = engine.worker.end_step

    def end_step():
        waited_for(engine.settled, "the plans", 120)
        usual()

    engine.worker.end_step = end_step
    for name, wish in wishes.items():
        for row in rows:
            choice = {"name": wish[0], "capacity": wish[1]} if wish else "off"
            engine.add(f"{name} {row.key}", row.tokens, len(row.answer), choice)
    engine.run()
    out = {}
    for name, row in itertools.product(wishes, rows):
        kept = engine.kept.get(f"{name} {row.key}")
        lengths = sum(kept.lengths(), []) if kept else [len(row.tokens)]
        out[name, row.key] = engine.answers[f"{name} {row.key}"].tokens, sum(lengths) / len(lengths)
    engine.close()
    return out


def answers_of_transformers(model, endpoint: str, rows: list, wishes: dict) -> dict:
    """The same through dkv.hf."""
    import torch
    from transformers import DynamicCache

    import dkv.hf

    out = {}
    for row, (name, wish) in itertools.product(rows, wishes.items()):
        cache = DynamicCache(config=model.config)
        if wish is not None:
            cache = dkv.hf.Cache(model, policy=wish[0], capacity=wish[1], endpoint=endpoint, timeout_s=120)
        said, feed = [], row.tokens
        with torch.inference_mode():
            for _ in row.answer:
                logits = model(torch.tensor([feed]), past_key_values=cache, logits_to_keep=1).logits
                feed = [int(logits[0, -1].argmax())]
                said += feed
        lengths = [len(row.tokens)]
        if wish is not None:
            if not cache.report().compressed:
                raise SystemExit(f"bench-vllm-needles: transformers kept {row.key} whole: {cache.report().failure}")
            lengths = [len(head) for layer in cache.layers for head in layer.positions]
        out[name, row.key] = said, sum(lengths) / len(lengths)
    return out


def main() -> None:
    options = parse_arguments()
    import conftest  # noqa: F401  vLLM's environment.
    from processes import Sidecar

    from dkv.hf import weights
    from dkv_lab import needles
    from dkv_lab.report import tables

    model, tokenizer = weights.load_smollm2()
    rows = needles.needle_rows(tokenizer, "report", "report", options.needles, options.tokens, options.seed)
    sizes = itertools.product(options.policies.split(","), map(int, options.capacity.split(",")))
    wishes = {"full": None} | {f"{name}@{size}": (name, size) for name, size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(pathlib.Path(folder)).start()
        try:
            there = answers_of_vllm(str(weights.smollm2_folder()), sidecar.endpoint, rows, wishes)
            here = answers_of_transformers(model, sidecar.endpoint, rows, wishes)
        finally:
            sidecar.stop()
    counted = [row for row in rows if there["full", row.key][0] == here["full", row.key][0] == row.answer]
    print(f"{len(counted)} of {len(rows)} prompts are answered by the full cache of both")
    for name in wishes:
        pairs = [[each[name, row.key][0] == row.answer for each in (there, here)] for row in counted]
        kept = [sum(each[name, row.key][1] for row in counted) / len(counted) for each in (there, here)]
        low, high = tables.bootstrap(lambda some: sum(hf for _, hf in some) / len(some), pairs)[1:]
        print(
            f"{name:16} vLLM {sum(found for found, _ in pairs)}  transformers {sum(found for _, found in pairs)}"
            f"  95 % interval {low:.2f} … {high:.2f}  only one of them {sum(a != b for a, b in pairs)}"
            f"  rows of each head {kept[0]:.0f} and {kept[1]:.0f}",
            flush=True,
        )
    os._exit(0)  # vLLM's own threads may wait for one another at exit.


if __name__ == "__main__":
    main()
