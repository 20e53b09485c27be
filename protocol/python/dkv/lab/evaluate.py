"""Every policy at equal bytes on needles and text: one prefill per prompt, one forced forward for all of them.

What a policy keeps is what a real sidecar keeps: the prompt's rows are lent to a dkvd, a private one by
default. Rules that exist in the lab alone, and everything under --inline, are computed in torch.

    python -m dkv.lab.evaluate smollm2 --profile p.json --needles 100 --texts 48 --capacity 64,128,256 -o results.csv
    python -m dkv.lab.evaluate report results.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import dkv

from . import models, needles, policies, profile, report, sidecar, wishes
from .needles import Row
from .probe import Probe, Prompt, Variant
from .store import PrefillStore

FORCED = 24
DEFAULT = "streamingllm,h2o,snapkv,pyramidkv,dynamickv,profile"
COLUMNS = (
    "key task template tokens policy capacity kept found logprob kl agree continuation_nll full_found bytes through"
).split()


def rows_for(tokenizer, options) -> list[Row]:
    """Tasks and lengths take turns, so that a run that is stopped has some of each."""
    columns = []
    for length in options.tokens:
        part, seed = options.part, options.seed
        columns.append(needles.needle_rows(tokenizer, options.family, part, options.needles, length, seed))
        columns.append(needles.needle_rows(tokenizer, "ruler", part, options.ruler, length, seed, "ruler"))
        columns.append(needles.text_rows(tokenizer, part, options.texts, length, seed, FORCED + 1))
    return [row for turn in itertools.zip_longest(*columns) for row in turn if row is not None]


@dataclass
class Choice:
    """A policy at a capacity, and who chose what it keeps."""

    policy: str
    capacity: int
    variant: Variant
    through: str  # "sidecar" or "inline"


def choices_for(facts: policies.Facts, names: list[str], capacities: list[int], loan: sidecar.Loan | None) -> list[Choice]:
    """FullKV first, then every policy at every capacity below the prompt."""
    prompt = facts.prompt
    whole = torch.full((len(prompt.compressed), prompt.kv_heads), prompt.prefix)
    out = [Choice("fullkv", 0, Variant("fullkv", whole), "inline")]
    for capacity in capacities:
        if capacity < prompt.tokens:
            out += [_choice(facts, name, capacity, loan) for name in names]
    return out


def _choice(facts: policies.Facts, name: str, capacity: int, loan: sidecar.Loan | None) -> Choice:
    wish = wishes.wish(name, facts, capacity) if loan is not None else None
    if wish is None:
        return Choice(name, capacity, policies.variant(name, facts, capacity), "inline")
    try:
        kept = loan.kept(wish)
    except dkv.DkvError as error:
        if error.status != dkv.Status.NOT_FOUND or name in wishes.SIDECAR_ONLY:
            raise
        _note(f"{name} is chosen inline: {error}")
        return Choice(name, capacity, policies.variant(name, facts, capacity), "inline")
    return Choice(name, capacity, sidecar.variant_of(f"{name}@{capacity}", kept, facts.prompt, facts.rankings), "sidecar")


@functools.cache
def _note(words: str) -> None:
    """Once."""
    print(f"evaluate: {words}", file=sys.stderr)


def evaluate(
    probe: Probe,
    store: PrefillStore,
    row: Row,
    options,
    loaded: dict[str, profile.Profile],
    chooser: sidecar.Chooser | None = None,
) -> list[dict]:
    """One line per variant."""
    is_text = not row.answer
    wants_sums = any(name.startswith("h2o") for name in options.policies)
    prompt, greedy = store.prefill(row.tokens, wants_sums, FORCED + 1 if is_text else 0)
    facts = policies.Facts(prompt, loaded)
    with chooser.lend(prompt) if chooser is not None else contextlib.nullcontext() as loan:
        chosen = choices_for(facts, options.policies, options.capacity, loan)
    variants = [choice.variant for choice in chosen]
    outcome = probe.force(prompt, greedy if is_text else torch.tensor(row.answer), variants, facts.rankings, is_text)
    real = None
    if is_text and options.perplexity and len(row.continuation) > 1:
        real = probe.force(prompt, torch.tensor(row.continuation), variants, facts.rankings).logprob[:, 1:]
    lines = []
    for index, choice in enumerate(chosen):
        line = dict.fromkeys(COLUMNS, "") | {"through": choice.through}
        kept = int(choice.variant.budgets.sum()) + prompt.window * choice.variant.budgets.numel()
        line |= {"key": row.key, "task": row.task, "template": row.template, "tokens": prompt.tokens}
        line |= {"policy": choice.policy, "capacity": choice.capacity, "kept": kept, "bytes": kept * _row_bytes(prompt)}
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


def _row_bytes(prompt: Prompt) -> int:
    """Of one token's K and V in one KV head."""
    layer = prompt.layers[prompt.compressed[0]]
    return layer.keys.element_size() * (layer.keys.shape[-1] + layer.values.shape[-1])


class Results:
    """The CSV, appended prompt by prompt; a prompt whose variants are all there is not run again."""

    def __init__(self, path: Path):
        self._path, self._columns = path, COLUMNS
        self._done: set[tuple[str, str, str]] = set()
        if path.exists() and path.stat().st_size:
            with path.open() as file:
                reader = csv.DictReader(file)
                self._columns = reader.fieldnames or []
                if self._columns != COLUMNS[: max(13, len(self._columns))]:  # The first version wrote 13.
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
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
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
    parser.add_argument("--inline", action="store_true", help="choose in torch, without a sidecar")
    parser.add_argument("--endpoint", help="of a sidecar that runs; by default a dkvd is started for the evaluation")
    parser.add_argument("--prefills", type=Path, help="keep prefills in this folder, for later runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.csv"))
    options = parser.parse_args(arguments)
    options.policies = options.policies.split(",")
    options.capacity = [int(value) for value in options.capacity.split(",")]
    options.tokens = [int(value) for value in options.tokens.split(",")]
    try:
        for name in options.policies:
            if name in wishes.SIDECAR_ONLY:
                if options.inline:
                    parser.error(f"{name} is the sidecar's alone: leave --inline out")
            elif policies.RULES[policies.parse(name)[0]][2] and not options.profile:
                parser.error(f"{name} needs a profile: give --profile")
    except policies.UnknownPolicy as unknown:
        parser.error(str(unknown))
    if options.inline and options.endpoint:
        parser.error("--inline needs no --endpoint")
    if min(options.capacity) <= options.window:
        parser.error(f"a capacity of {min(options.capacity)} leaves nothing beside the window of {options.window}")
    return options


@contextlib.contextmanager
def chooser_for(options, model: str) -> Iterator[sidecar.Chooser | None]:
    """The line to the sidecar that was asked for; None under --inline."""
    if options.inline:
        yield None
        return
    private = sidecar.private_sidecar(options.threads) if options.endpoint is None else contextlib.nullcontext(options.endpoint)
    with private as endpoint, contextlib.closing(sidecar.Chooser(endpoint, model)) as chooser:
        yield chooser


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
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with chooser_for(options, name) as chooser, Progress(*columns, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(rows))
        for row in rows:
            if not results.has(row, options.policies, options.capacity):
                results.append(evaluate(probe, store, row, options, loaded, chooser))
            progress.advance(bar)
    return report.main([str(options.output)])


if __name__ == "__main__":
    sys.exit(main())
