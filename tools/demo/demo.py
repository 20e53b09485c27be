#!/usr/bin/env python3
"""Shows dkv at work: starts dkvd, starts a separate Python process with SmolLM2-135M, steers it from
outside with `dkv policy set`, and prints what became of the answer and of the memory.

    make demo                                        the model's calibrated profile and every policy at 512 tokens,
                                                     then the profile and dynamickv at 128
    make demo PROMPT=my.txt POLICY=snapkv CAPACITY=256    one run on your own text
    make demo BACKEND=cuda                           a short prompt on the CPU and on a GPU (or its emulation),
                                                     and whether both keep the same positions

PROMPT's last paragraph is taken as the question. Results: OUT/demo.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import backends  # noqa: E402
from document import default_document, user_document  # noqa: E402

POLICIES = ("streamingllm", "snapkv", "pyramidkv", "dynamickv")
CAPACITY = 512
CAPACITY_SMALL = 128
START_SECONDS = 10
BARS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True)
class Run:
    policy: str
    capacity: int | None = None
    dkv: bool = True
    profile: str | None = None  # The engine's own wish: no operator's policy is set for it.

    @property
    def title(self) -> str:
        if not self.dkv:
            return "full cache, without dkv"
        calibrated = " + profile" if self.profile else ""
        return self.policy + (f" {self.capacity}" if self.capacity else "") + calibrated

    def wish(self) -> dict:
        """What the engine asks for itself; an operator's policy would go before it."""
        if not self.profile:
            return {}
        return {"policy": self.policy, "capacity": self.capacity, "profile": self.profile}


class Sidecar:
    """dkvd at an endpoint of its own, and the controller that talks to it."""

    def __init__(self, bin_folder: pathlib.Path, endpoint: str, log: pathlib.Path, flags: tuple[str, ...] = ()) -> None:
        self.controller = bin_folder / "dkv"
        self.endpoint = endpoint
        self.log = log.open("w")
        self.process = subprocess.Popen(
            [bin_folder / "dkvd", "--endpoint", endpoint, *flags], stderr=self.log, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(
            [self.controller, "--endpoint", endpoint, "status"], capture_output=True
        ).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: dkvd did not start; see {log}")
            time.sleep(0.05)

    def dkv(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.controller, "--endpoint", self.endpoint, *arguments], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"demo: dkv {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def set_policy(self, run: Run) -> None:
        if run.profile:
            self.dkv("policy", "reset")
            return
        capacity = ("--capacity", str(run.capacity)) if run.capacity else ()
        self.dkv("policy", "set", run.policy, *capacity)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(START_SECONDS)
        self.log.close()


class Engine:
    """The inference process. Events come as JSON lines."""

    def __init__(self, library: pathlib.Path, log: pathlib.Path, environment: dict[str, str] | None = None) -> None:
        self.log_path = log
        self.log = log.open("w")
        environment = os.environ | (environment or {}) | {
            "PYTHONPATH": str(ROOT / "protocol" / "python"),
            "DKV_LIBRARY": str(library),
            "PYTHONUNBUFFERED": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "demo" / "engine.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def events(self):
        for line in self.process.stdout:
            yield json.loads(line)
        raise SystemExit(f"demo: the engine ended; see {self.log_path}")

    def ask(self, **run) -> None:
        self.process.stdin.write(json.dumps(run) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.log.close()


def runs_of(options) -> list[Run]:
    baseline = Run("fullkv", dkv=False)
    if options.policy or options.capacity or options.prompt:
        policy = options.policy or "dynamickv"
        capacity = None if policy == "fullkv" else options.capacity or CAPACITY
        return [baseline, Run(policy, capacity, profile=options.profile)]
    profile = options.profile or "auto"
    return [
        baseline,
        Run("dynamickv", CAPACITY, profile=profile),
        *(Run(policy, CAPACITY) for policy in POLICIES),
        Run("dynamickv", CAPACITY_SMALL, profile=profile),
        Run("dynamickv", CAPACITY_SMALL),
    ]


def play(options, document, sidecar, engine, console) -> dict:
    """Every run, one after another, in the one engine process. Returns demo.json's content."""
    runs = runs_of(options)
    results: list[dict] = []
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("layer {task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        loading = progress.add_task("loading the model", total=1)
        events = engine.events()
        loaded = next(events)
        progress.update(loading, completed=1)
        for run in runs:
            if run.dkv:
                sidecar.set_policy(run)
            task = progress.add_task(run.title, total=loaded["layers"])
            engine.ask(
                dkv=run.dkv,
                endpoint=sidecar.endpoint,
                wish=run.wish(),
                document=dataclasses.asdict(document),
                max_new_tokens=options.max_new_tokens,
            )
            for event in events:
                if event.pop("event") == "done":
                    break
                progress.update(task, completed=event["layer"] + 1)
            results.append(describe(run, event, results, document))
            progress.console.print(f"{run.title}: {one_line(event['answer'])}", style="bold", highlight=False, markup=False)
    facts = {key: loaded[key] for key in ("model", "engine", "threads")}
    return facts | {
        "document": document.name,
        "question": document.question,
        "prompt_tokens": event["prompt_tokens"],
        "runs": results,
    }


def describe(run: Run, event: dict, before: list[dict], document) -> dict:
    """One entry of demo.json's `runs`."""
    result = {"title": run.title, "policy": run.policy, "capacity": run.capacity, "profile": run.profile, "through_dkv": run.dkv}
    result |= {key: value for key, value in event.items() if key != "prompt_tokens"}
    result["prefill_seconds_without_dkv"] = before[0]["prefill_seconds"] if before else event["prefill_seconds"]
    result["correct"] = document.expected in event["answer"] if document.expected else None
    return result


def one_line(answer: str) -> str:
    return answer.replace("\n", " ")[:100]


def mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


def print_answers(report: dict, console: Console) -> None:
    table = Table(title=f"“{report['question']}”", title_justify="left")
    table.add_column("run", no_wrap=True, min_width=24)
    table.add_column("right", justify="center", min_width=5)
    table.add_column("answer", max_width=62)
    for run in report["runs"]:
        right = {True: "[green]yes[/]", False: "[red]no[/]", None: "?"}[run["correct"]]
        table.add_row(run["title"], right, one_line(run["answer"]))
    console.print(table)


def bars(values: list[float], top: float) -> str:
    steps = len(BARS) - 1
    return "".join(BARS[max(1, round(value / top * steps)) if value else 0] for value in values)


def print_budgets(report: dict, console: Console) -> None:
    console.print("\n[bold]Tokens kept per layer[/] (layer 0 on the left; each row to its own largest)")
    for run in report["runs"]:
        kept = run["kept_per_layer"]
        console.print(
            f"  {run['title']:<24} {bars(kept, max(kept))}  {min(kept):>5.0f} … {max(kept):.0f}",
            highlight=False,
        )


def print_savings(report: dict, console: Console) -> None:
    table = Table(
        title=f"Savings, MiB: {report['prompt_tokens']} tokens, {mib(report['runs'][0]['bytes_full'])} MiB of KV cache",
        title_justify="left",
    )
    for name in ("run", "dropped", "returned", "peak", "final", "mass", "prefill s", "sidecar s"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for run in report["runs"]:
        mass = run["mass_kept_per_layer"]
        table.add_row(
            run["title"],
            mib(run["bytes_dropped"]),
            mib(run["bytes_returned"]),
            mib(run["peak_bytes"]),
            mib(run["final_bytes"]),
            f"{sum(mass) / len(mass):.2f}" if mass and None not in mass else "?",
            f"{run['prefill_seconds']:.1f}",
            f"{run['sidecar_seconds']:.2f}",
        )
    console.print(table)
    console.print(
        "returned, peak (in prefill), final: measured, blocks of the engine's shared memory; the first row is\n"
        "computed. mass: share of the window's attention on kept tokens. prefill: to the first token.",
        style="dim",
    )
    for run in report["runs"]:
        if run["failure"]:
            console.print(f"[red]{run['title']}: not compressed: {run['failure']}[/]")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of dkvd and dkv")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where demo.json and the logs go")
    parser.add_argument("--prompt", type=pathlib.Path, help="a text of yours instead of the licence")
    parser.add_argument("--policy", help="one policy instead of all")
    parser.add_argument("--capacity", type=int, help=f"tokens per layer and KV head ({CAPACITY})")
    parser.add_argument("--profile", help='of dkv calibrate, or "auto": for the one policy; beside the others auto is shown')
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu", help="cuda: compared to the CPU's")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    if options.prompt and not options.prompt.is_file():
        parser.error(f"--prompt: '{options.prompt}' is no file")
    return options


def compare_backends(options, console: Console) -> None:
    document = user_document(options.prompt) if options.prompt else backends.short_document()
    console.print(f"[bold]dkv demo[/]: {document.name}")
    library = options.bin.parent / "lib" / "libdkv.so"

    def make_engine(log: pathlib.Path, environment: dict[str, str]) -> Engine:
        return Engine(library, log, environment)

    with tempfile.TemporaryDirectory(prefix="dkv-demo-") as folder:
        report = backends.compare(options, document, Sidecar, make_engine, pathlib.Path(folder), console)
    (options.out / "backends.json").write_text(json.dumps(report, indent=1) + "\n")
    if not backends.print_comparison(report, console):
        raise SystemExit("demo: the two backends did not keep the same")


def main() -> None:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    document = user_document(options.prompt) if options.prompt else default_document()
    console = Console(width=None if sys.stdout.isatty() else 100)
    if options.backend == "cuda":
        return compare_backends(options, console)
    console.print(f"[bold]dkv demo[/]: {document.name}")
    with tempfile.TemporaryDirectory(prefix="dkv-demo-") as folder:
        sidecar = Sidecar(options.bin, f"ipc://{folder}/dkvd.sock", options.out / "dkvd.log")
        engine = Engine(options.bin.parent / "lib" / "libdkv.so", options.out / "engine.log")
        try:
            report = play(options, document, sidecar, engine, console)
            status = sidecar.dkv("status")
            savings = sidecar.dkv("savings")
        finally:
            engine.close()
            sidecar.close()
    (options.out / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    print_answers(report, console)
    print_budgets(report, console)
    print_savings(report, console)
    for command, text in (("dkv status", status), ("dkv savings", savings)):
        console.print(f"\n[bold]$ {command}[/]")
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{options.out / 'demo.json'} has every figure")


if __name__ == "__main__":
    main()
