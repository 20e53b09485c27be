#!/usr/bin/env python3
"""The same stream of requests through a real vLLM, dkv off and on: what a pool of a few full requests can serve.

    make bench-vllm BENCH_VLLM='--requests 8 --tokens 2048 --pool 3 --policies dynamickv,auto'

Runs in vLLM's environment (tools/vllm/install.sh). Every round is an engine in a process of its own, so that none
warms the next one up; off and the policies take turns. Prints one line per round and the ratios; --json writes one
object. Times are of requests: with fewer than a hundred, p99 is interpolated and close to the largest. cpu_seconds, of
vLLM's process, say what the others cannot where other programs run beside it.
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

RATIOS = (
    *("most_running", "mean_running", "requests_per_second", "cpu_seconds"),
    *("ttft_median_s", "ttft_p99_s", "tpot_median_s", "tpot_p99_s"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="of each prompt")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--pool", type=float, default=3.0, help="full requests that fit")
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--policies", default="dynamickv,auto", help="(%(default)s)")
    parser.add_argument("--layers-per-group", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of off and each policy")
    parser.add_argument("--model", help="a Hugging Face folder; without it SmolLM2-135M")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--round", help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    return parser.parse_args()


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def prompt(number: int, count: int) -> list[int]:
    """Token ids without a meaning: every prompt its own."""
    return [(7919 * (number + 1) + 31 * each) % 40000 + 1000 for each in range(count)]


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
    choice = "off" if options.round == "off" else {"name": options.round, "capacity": options.capacity}
    begin, cpu, first, last, seen, running = time.perf_counter(), time.process_time(), {}, {}, {}, []
    for at in range(options.requests):
        engine.add(f"request {at}", prompt(at, options.tokens), options.answer, choice)
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
    spent, cpu = time.perf_counter() - begin, time.process_time() - cpu
    between = [(last[name] - first[name]) / max(1, seen[name] - 1) for name in first]
    return {
        "round": options.round,
        "blocks": blocks,
        "most_running": max(running),
        "mean_running": statistics.mean(running),
        "preemptions": engine.preemptions,
        "requests_per_second": options.requests / spent,
        "cpu_seconds": cpu,
        "ttft_median_s": statistics.median(first.values()),
        "ttft_p99_s": percentile_99(list(first.values())),
        "tpot_median_s": statistics.median(between),
        "tpot_p99_s": percentile_99(between),
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

    order = ["off", *options.policies.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(pathlib.Path(folder)).start()
        try:
            rounds = [one_round(which, sidecar.endpoint) for _ in range(options.rounds) for which in order]
        finally:
            sidecar.stop()
    for each in rounds:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in each.items()))  # fmt: skip
    of = {which: [each for each in rounds if each["round"] == which] for which in order}
    ratios = {
        policy: {name: statistics.median(on[name] / off[name] for off, on in zip(of["off"], of[policy])) for name in RATIOS}
        for policy in order[1:]
    }
    for policy, each in ratios.items():
        print(f"{policy} / off: " + "  ".join(f"{name} {value:.2f}" for name, value in each.items()))
    if options.json:
        print(json.dumps({"rounds": rounds, "ratios": ratios}))


if __name__ == "__main__":
    main()
