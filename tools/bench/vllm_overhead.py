#!/usr/bin/env python3
"""What dkv costs a request that has vLLM for itself: the same prompt, left whole and compressed, in turn.

    make overhead-vllm OVERHEAD_VLLM='--tokens 2048 --pairs 10 --policies dynamickv,auto'

Runs in vLLM's environment (tools/vllm/install.sh), with one engine for all requests. First token: the prefill. Answer:
all of the request, with the plan carried out on its way. CPU: of the answer, the engine's process and dkvd together,
which other programs on the machine change less than the clock. Prints each policy's medians and, in brackets, the
quartiles of its pairs, then what of a compressed prompt was dkv's in the engine's thread, and dkvd's; --json adds one
object. --copies: as where the sidecar cannot read vLLM's memory, and gets copies of K and V.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "vllm")]

from processes import Sidecar, cpu_seconds  # noqa: E402
from vllm_pool import prompt  # noqa: E402

MEASURES = ("first_token", "answer", "cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="of each prompt (%(default)s)")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer (%(default)s)")
    parser.add_argument("--pairs", type=int, default=10, help="of each policy (%(default)s)")
    parser.add_argument("--capacity", type=int, default=512, help="(%(default)s)")
    parser.add_argument("--policies", default="dynamickv,auto", help="(%(default)s)")
    parser.add_argument("--model", help="a Hugging Face folder; without it SmolLM2-135M")
    parser.add_argument("--copies", action="store_true", help="copy K and V for the sidecar")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


class Requests:
    """One after another, through one engine."""

    def __init__(self, options: argparse.Namespace, sidecar):
        from engine import Engine

        from dkv.hf import weights

        self._options, self._asked, self._pids = options, 0, (os.getpid(), sidecar.process.pid)
        self._sidecar, self._own = sidecar, 0.0
        length = options.tokens + options.answer
        self.engine = Engine(
            options.model or str(weights.smollm2_folder()),
            sidecar.endpoint,
            max_model_len=length,
            max_num_batched_tokens=length,
            max_num_seqs=1,
        )
        for step in ("begin_step", "take", "end_step"):
            self._time(self.engine.worker, step)

    def _time(self, worker, step: str) -> None:
        usual = getattr(worker, step)

        def timed(*arguments):
            begin = time.perf_counter()
            usual(*arguments)
            self._own += time.perf_counter() - begin

        setattr(worker, step, timed)

    def _busy(self) -> float:
        """Seconds that dkvd spent on all sessions so far."""
        return json.loads(self._sidecar.dkv("savings", "--json").stdout)["total"]["busy_ns"] / 1e9

    def ask(self, tokens: list[int], choice) -> dict[str, float]:
        """Seconds of each of MEASURES, and of dkv's own."""
        self._asked += 1
        running = self.engine.llm.llm_engine
        busy, self._own = self._busy(), 0.0
        begin, first, cpu = time.perf_counter(), None, sum(map(cpu_seconds, self._pids))
        self.engine.add(f"request {self._asked}", tokens, self._options.answer, choice)
        while running.has_unfinished_requests():
            self.engine.step()
            if first is None and any(each.num_output_tokens for each in self.engine.scheduler.requests.values()):
                first = time.perf_counter() - begin
        spent = time.perf_counter() - begin
        cpu = sum(map(cpu_seconds, self._pids)) - cpu
        return {"first_token": first, "answer": spent, "cpu": cpu, "thread": self._own, "dkvd": self._busy() - busy}


def measure(options: argparse.Namespace, sidecar) -> dict[str, list[dict]]:
    requests = Requests(options, sidecar)
    choices = {name: {"name": name, "capacity": options.capacity} for name in options.policies.split(",")}
    pairs: dict[str, list[dict]] = {name: [] for name in choices}
    for at in range(options.pairs + 1):  # The first warms up.
        tokens = prompt(at, options.tokens)
        for name, choice in choices.items():
            both = {"off": "off", "on": choice}
            order = sorted(both, reverse=at % 2 == 0)
            seconds = {which: requests.ask(tokens, both[which]) for which in order}
            if at:
                pairs[name].append(seconds)
    asked = len(choices) * (options.pairs + 1)
    compressed = requests.engine.stats["requests compressed"]
    if compressed != asked:
        raise SystemExit(f"overhead-vllm: {compressed} of {asked} requests were compressed: {dict(requests.engine.stats)}")
    return pairs


def ratios(pairs: list[dict], what: str) -> list[float]:
    return [pair["on"][what] / pair["off"][what] for pair in pairs]


def shown(pairs: list[dict], what: str) -> str:
    low, middle, high = statistics.quantiles(ratios(pairs, what), n=4)
    off, on = (statistics.median(pair[which][what] for pair in pairs) for which in ("off", "on"))
    return f"{what.replace('_', ' ')} {off:.2f} s whole, {on:.2f} s compressed: x {middle:.3f} [{low:.3f}, {high:.3f}]"


def own(pairs: list[dict]) -> str:
    thread, dkvd = (1000 * statistics.median(pair["on"][which] for pair in pairs) for which in ("thread", "dkvd"))
    return f"of it dkv's in the engine's thread {thread:.1f} ms, dkvd's {dkvd:.1f} ms"


def main() -> None:
    options = parse_arguments()
    if options.copies:
        os.environ["DKV_ARENA"] = "posix_shm"
    if options.pairs < 2:
        raise SystemExit("overhead-vllm: --pairs must be at least 2")
    measured, failure = {}, None
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(pathlib.Path(folder)).start()
        try:
            measured = measure(options, sidecar)
        except SystemExit as reason:
            failure = reason
        finally:
            sidecar.stop()
    for policy, pairs in measured.items():
        print(f"{policy}, {len(pairs)} pairs: " + "; ".join([*(shown(pairs, what) for what in MEASURES), own(pairs)]))
    if options.json:
        print(json.dumps({"options": vars(options), "pairs": measured}))
    if failure is not None:
        print(failure, file=sys.stderr)
    sys.stdout.flush()
    os._exit(failure is not None)  # vLLM's own threads may wait for one another at exit.


if __name__ == "__main__":
    main()
