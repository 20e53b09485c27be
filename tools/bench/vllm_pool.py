#!/usr/bin/env python3
"""The same stream of requests through a real vLLM, dkv off and on: what a pool of a few full requests can serve.

    make bench-vllm BENCH_VLLM='--requests 8 --tokens 2048 --pool 3'

Runs in vLLM's environment (tools/vllm/install.sh). Every round is an engine in a process of its own, so that neither
warms the other up; off and on take turns. Prints one line per round and the ratios; --json writes one object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "vllm")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="of each prompt")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--pool", type=float, default=3.0, help="full requests that fit")
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--policy", default="dynamickv")
    parser.add_argument("--layers-per-group", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--model", help="a Hugging Face folder; without it SmolLM2-135M")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--round", choices=["off", "on"], help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(options: argparse.Namespace) -> dict:
    """One round: every request waits from the beginning, so that the pool alone bounds what runs."""
    from engine import Engine
    from transformers import AutoConfig

    from dkv.hf import weights

    model = options.model or str(weights.smollm2_folder())
    layers, block = AutoConfig.from_pretrained(model).num_hidden_layers, 32
    # Off has dkv's groups, too, and so the same blocks: only the choice of each request differs.
    groups = layers // options.layers_per_group
    blocks = int(options.pool * groups * -(-(options.tokens + options.answer) // block))
    engine = Engine(
        model,
        options.endpoint,
        {"layers_per_group": options.layers_per_group},
        max_model_len=options.tokens + options.answer,
        max_num_seqs=options.requests,
        num_gpu_blocks_override=blocks,
    )
    wish = "off" if options.round == "off" else {"name": options.policy, "capacity": options.capacity}
    begin, first, last, seen, running = time.perf_counter(), {}, {}, {}, []
    for at in range(options.requests):
        tokens = [(7919 * (at + 1) + 31 * each) % 40000 + 1000 for each in range(options.tokens)]
        engine.add(f"request {at}", tokens, options.answer, wish)
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.step()
        now = time.perf_counter() - begin
        for request in engine.scheduler.requests.values():
            said = request.num_output_tokens
            if said > seen.get(request.request_id, 0):
                seen[request.request_id] = said
                first.setdefault(request.request_id, now)
                last[request.request_id] = now
        running.append(len(engine.scheduler.running))
    spent = time.perf_counter() - begin
    between = [(last[name] - first[name]) / max(1, seen[name] - 1) for name in first]
    return {
        "round": options.round,
        "blocks": blocks,
        "most_running": max(running),
        "mean_running": statistics.mean(running),
        "preemptions": engine.preemptions,
        "requests_per_second": options.requests / spent,
        "ttft_median_s": statistics.median(first.values()),
        "tpot_median_s": statistics.median(between),
        "compressed": engine.stats["requests compressed"],
        "blocks_given_back": engine.stats["blocks given back"],
    }


def one_round(which: str, endpoint: str) -> dict:
    words = [sys.executable, __file__, *sys.argv[1:], "--round", which, "--endpoint", endpoint]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=3000)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"round"')]
    if not lines:
        raise SystemExit(f"bench-vllm: round {which} failed with {done.returncode}")
    return json.loads(lines[-1])


def main() -> None:
    options = parse_arguments()
    if options.round:
        print(json.dumps(serve(options)), flush=True)
        os._exit(0)  # vLLM's own threads may wait for one another at exit.
    from processes import Sidecar

    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(pathlib.Path(folder)).start()
        try:
            rounds = [one_round(which, sidecar.endpoint) for _ in range(options.pairs) for which in ("off", "on")]
        finally:
            sidecar.stop()
    for each in rounds:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in each.items()))  # fmt: skip
    off, on = ([each for each in rounds if each["round"] == which] for which in ("off", "on"))
    ratios = {
        name: statistics.median(b[name] / a[name] for a, b in zip(off, on))
        for name in ("most_running", "mean_running", "requests_per_second", "ttft_median_s", "tpot_median_s")
    }
    print("on / off: " + "  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if options.json:
        print(json.dumps({"rounds": rounds, "ratios": ratios}))


if __name__ == "__main__":
    main()
