"""Every policy at equal bytes on needles and text: one prefill per prompt, one forced forward for all of them.

    python -m dkv.lab.evaluate smollm2 --profile p.json --needles 100 --texts 48 --capacity 64,128,256 -o results.csv
    python -m dkv.lab.evaluate report results.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

import torch

from . import models, needles, policies, profile, report
from .needles import Row
from .probe import Probe, Variant
from .store import PrefillStore

FORCED = 24
DEFAULT = "streamingllm,h2o,snapkv,pyramidkv,dynamickv,profile"
COLUMNS = "key task template tokens policy capacity kept found logprob kl agree continuation_nll full_found".split()


def rows_for(tokenizer, options) -> list[Row]:
    """Tasks and lengths take turns, so that a run that is stopped has some of each."""
    columns = []
    for length in options.tokens:
        part, seed = options.part, options.seed
        columns.append(needles.needle_rows(tokenizer, options.family, part, options.needles, length, seed))
        columns.append(needles.needle_rows(tokenizer, "ruler", part, options.ruler, length, seed, "ruler"))
        columns.append(needles.text_rows(tokenizer, part, options.texts, length, seed, FORCED + 1))
    return [row for turn in itertools.zip_longest(*columns) for row in turn if row is not None]


def variants_for(facts: policies.Facts, names: list[str], capacities: list[int]) -> list[tuple[str, int, Variant]]:
    """FullKV first, then every policy at every capacity below the prompt."""
    prompt = facts.prompt
    whole = torch.full((len(prompt.compressed), prompt.kv_heads), prompt.prefix)
    out = [("fullkv", 0, Variant("fullkv", whole))]
    for capacity in capacities:
        if capacity >= prompt.tokens:
            continue
        out += [(name, capacity, policies.variant(name, facts, capacity)) for name in names]
    return out


def evaluate(probe: Probe, store: PrefillStore, row: Row, options, loaded: dict[str, profile.Profile]) -> list[dict]:
    """One line per variant."""
    is_text = not row.answer
    wants_sums = any(name.startswith("h2o") for name in options.policies)
    prompt, greedy = store.prefill(row.tokens, wants_sums, FORCED + 1 if is_text else 0)
    facts = policies.Facts(prompt, loaded)
    chosen = variants_for(facts, options.policies, options.capacity)
    variants = [variant for _, _, variant in chosen]
    outcome = probe.force(prompt, greedy if is_text else torch.tensor(row.answer), variants, facts.rankings, is_text)
    real = None
    if is_text and options.perplexity and len(row.continuation) > 1:
        real = probe.force(prompt, torch.tensor(row.continuation), variants, facts.rankings).logprob[:, 1:]
    lines = []
    for index, (name, capacity, variant) in enumerate(chosen):
        line = dict.fromkeys(COLUMNS, "")
        kept = int(variant.budgets.sum()) + prompt.window * variant.budgets.numel()
        line |= {"key": row.key, "task": row.task, "template": row.template, "tokens": prompt.tokens}
        line |= {"policy": name, "capacity": capacity, "kept": kept}
        if is_text:
            line["kl"] = f"{float(outcome.kl[index, 1:].mean()):.6f}"
            line["agree"] = f"{float(outcome.agree[index, 1:].float().mean()):.4f}"
        else:
            line["found"] = int(outcome.hit[index].all())
            line["full_found"] = int(outcome.hit[0].all())
            line["logprob"] = f"{float(outcome.logprob[index].sum()):.5f}"
        if real is not None:
            line["continuation_nll"] = f"{-float(real[index].mean()):.5f}"
        lines.append(line)
    return lines


class Results:
    """The CSV, appended prompt by prompt; a prompt whose variants are all there is not run again."""

    def __init__(self, path: Path):
        self._path = path
        self._done: set[tuple[str, str, str]] = set()
        if path.exists() and path.stat().st_size:
            with path.open() as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != COLUMNS:
                    raise RuntimeError(f"{path} has other columns than this build writes: choose another output")
                self._done = {(line["key"], line["policy"], line["capacity"]) for line in reader}
        else:
            with path.open("w", newline="") as file:
                csv.DictWriter(file, COLUMNS).writeheader()

    def has(self, row: Row, names: list[str], capacities: list[int]) -> bool:
        wanted = [(row.key, name, str(c)) for name in names for c in capacities if c < len(row.tokens)]
        return all(entry in self._done for entry in [(row.key, "fullkv", "0"), *wanted])

    def append(self, lines: list[dict]) -> None:
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            for line in lines:
                entry = (line["key"], line["policy"], str(line["capacity"]))
                if entry not in self._done:
                    writer.writerow(line)
                    self._done.add(entry)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dkv.lab.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("model", help='a Hugging Face folder, or "smollm2"')
    parser.add_argument("--profile", type=Path, action="append", default=[], help="may be given several times")
    parser.add_argument("--policies", default=DEFAULT, help="with parameters: profile/alpha=0.5/floor=0.2 (%(default)s)")
    parser.add_argument("--capacity", default="64,128,256,512")
    parser.add_argument("--needles", type=int, default=100)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--ruler", type=int, default=0, help="multi-key, multi-value, variable tracking")
    parser.add_argument("--tokens", default="1024")
    parser.add_argument("--family", choices=tuple(needles.FAMILIES), default="report", help="of needle templates")
    parser.add_argument("--part", choices=("calibration", "tuning", "report"), default="report", help="of the texts")
    parser.add_argument("--perplexity", action="store_true", help="also of what really came next; doubles the forwards")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--prefills", type=Path, help="keep prefills in this folder, for later runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.csv"))
    options = parser.parse_args(arguments)
    options.policies = options.policies.split(",")
    options.capacity = [int(value) for value in options.capacity.split(",")]
    options.tokens = [int(value) for value in options.tokens.split(",")]
    try:
        for name in options.policies:
            if policies.RULES[policies.parse(name)[0]][2] and not options.profile:
                parser.error(f"{name} needs a profile: give --profile")
    except policies.UnknownPolicy as unknown:
        parser.error(str(unknown))
    if min(options.capacity) <= options.window:
        parser.error(f"a capacity of {min(options.capacity)} leaves nothing beside the window of {options.window}")
    return options


def main(arguments: list[str] | None = None) -> int:
    from rich.progress import Progress, TimeElapsedColumn

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer, name = models.load(options.model)
    probe = Probe(model, options.window)
    described = profile.describe_model(model, probe.slidings, name)
    geometry = profile.Geometry(**described["geometry"])
    loaded = {path.stem: profile.load(path, geometry) for path in options.profile}
    store = PrefillStore(probe, described["config"] + described["weights"], options.prefills)
    results = Results(options.output)
    rows = rows_for(tokenizer, options)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(rows))
        for row in rows:
            if not results.has(row, options.policies, options.capacity):
                results.append(evaluate(probe, store, row, options, loaded))
            progress.advance(bar)
    return report.main([str(options.output)])


if __name__ == "__main__":
    sys.exit(main())
