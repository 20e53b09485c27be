"""Every policy at equal bytes on needles and text: one prefill per prompt, one forced forward for all of them.

What a policy keeps is what a real sidecar keeps: the prompt's rows are lent to a dkvd, a private one by
default. With --inline the same choice is computed in torch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import dkv
from dkv.errors import UserError
from dkv.hf import models, profiles
from dkv.hf import profile_file as profile
from dkv.hf.replay import Instruction

from . import decode, hidden, longbench, needles, policies, progress, ranges, record, ruler, shard, sidecar
from .needles import FORCED, Row
from .probe import Outcome, Probe, Prompt, Variant
from .report import eval_figures, tables
from .results import COLUMNS, Results
from .store import PrefillStore

SIZES = "64,128,256,512"
DEFAULT = "streamingllm,h2o,snapkv,pyramidkv,dynamickv,profile"


def rows_for(tokenizer, options) -> list[Row]:
    columns = []
    for length in options.tokens:
        part, seed = options.part, options.seed
        if options.question in ("shown", "both"):
            columns.append(needles.needle_rows(tokenizer, options.family, part, options.needles, length, seed))
            columns.append(needles.needle_rows(tokenizer, "ruler", part, options.ruler, length, seed, "ruler", ruler.RULER))
            columns.append(needles.text_rows(tokenizer, part, options.texts, length, seed, FORCED + 1))
        if options.question in ("hidden", "both"):
            columns.append(hidden.needle_rows(tokenizer, options.family, part, options.needles, length, seed))
            columns.append(hidden.ruler_rows(tokenizer, part, options.ruler, length, seed, ruler.RULER))
            columns.append(hidden.text_rows(tokenizer, part, options.texts, length, seed))
    if options.grid:
        lengths, depths = options.grid
        columns.append(needles.grid_rows(tokenizer, options.family, options.part, lengths, depths, options.repeats, options.seed))
    if options.longbench:
        columns.append(longbench.rows(tokenizer, options.longbench, options.longest, options.rows))
    return needles.in_turn(columns)


@dataclass
class Choice:
    """A policy at a capacity, and who chose what it keeps."""

    policy: str
    capacity: int
    variant: Variant
    through: str  # "sidecar" or "inline"
    facts: policies.Facts  # With the policy's window.


def choices_for(facts: policies.Facts, names: list[str], capacities: list[int], loan: sidecar.Loan | None) -> list[Choice]:
    """FullKV first, then every policy at every capacity below the prompt."""
    prompt = facts.prompt
    whole = torch.full((len(prompt.compressed), prompt.kv_heads), prompt.prefix)
    out = [Choice("fullkv", 0, Variant("fullkv", whole), "inline", facts)]
    for capacity in capacities:
        if capacity < prompt.tokens:
            out += [_choice(policies.facts_for(name, facts), name, capacity, loan) for name in names]
    return out


def _choice(facts: policies.Facts, name: str, capacity: int, loan: sidecar.Loan | None) -> Choice:
    if loan is None or policies.rows_for(name, facts, capacity) >= facts.prompt.tokens:
        return Choice(name, capacity, policies.variant(name, facts, capacity), "inline", facts)
    try:
        kept = loan.kept(policies.wish(name, facts, capacity))
    except dkv.DkvError as error:
        if error.status != dkv.Status.NOT_FOUND or policies.rule(name).budgets is None:
            raise
        _note(f"{name} is chosen inline: {error}")
        return Choice(name, capacity, policies.variant(name, facts, capacity), "inline", facts)
    made = sidecar.variant_of(f"{name}@{capacity}", kept, facts.prompt, facts.rankings)
    return Choice(name, capacity, policies.read_back(name, facts, made, capacity), "sidecar", facts)


def _of_each_window(chosen: list[Choice], run: Callable[[policies.Facts, list[Variant]], list]) -> list:
    """What `run` makes of the variants of each window, in the order of `chosen`."""
    out: list = [None] * len(chosen)
    for window in {choice.facts.prompt.window for choice in chosen}:
        members = [index for index, choice in enumerate(chosen) if choice.facts.prompt.window == window]
        made = run(chosen[members[0]].facts, [chosen[index].variant for index in members])
        for index, one in zip(members, made):
            out[index] = one
    return out


def _forced(probe: Probe, chosen: list[Choice], answer: torch.Tensor, compare=False, judged=None) -> Outcome:
    """probe.force() of all of them."""

    def rows(facts: policies.Facts, variants: list[Variant]) -> list[tuple]:
        found = probe.force(facts.prompt, answer, variants, facts.rankings, compare, judged)
        columns = (found.logprob, found.hit, found.kl, found.agree)
        return [tuple(None if column is None else column[index] for column in columns) for index in range(len(variants))]

    parts = zip(*_of_each_window(chosen, rows))
    return Outcome(*(None if part[0] is None else torch.stack(part) for part in parts))


@functools.cache
def _note(words: str) -> None:
    """Once."""
    print(f"{shard.NOTE}{words}", file=sys.stderr)


def evaluate(
    probe: Probe,
    store: PrefillStore,
    tokenizer,
    row: Row,
    options,
    loaded: dict[str, profile.Profile],
    chooser: sidecar.Chooser | None = None,
) -> tuple[list[dict], list[torch.Tensor]]:
    """A line per policy and capacity, and the budgets of each."""
    is_text = not row.answer and not row.writes and not row.asks
    wants_sums = any(name.startswith("h2o") for name in options.policies)
    prompt, greedy = store.prefill(row.tokens, wants_sums, FORCED + 1 if is_text else 0)
    facts = policies.Facts(prompt, loaded, lambda: _replayed(probe, tokenizer, prompt, row))
    with chooser.lend(prompt, lambda: facts.replayed) if chooser is not None else contextlib.nullcontext() as loan:
        chosen = choices_for(facts, options.policies, options.capacity, loan)
    variants = [choice.variant for choice in chosen]
    if row.asks:
        return _asked(probe, row, prompt, chosen)
    if row.writes:
        ends = decode.ends_of(probe.model)
        written = _of_each_window(chosen, lambda facts, part: decode.greedy(probe, facts.prompt, part, facts.rankings, row.writes, ends))
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        lines = [_line(row, one) | {"score": f"{row.judge(text):.4f}", "written": _written(row, text)} for one, text in zip(chosen, texts)]
        # LongBench's prompts may be short: what fits is kept whole, and counts as what it is.
        fits = [(name, c) for c in options.capacity if c >= prompt.tokens for name in options.policies]
        lines += [lines[0] | {"policy": name, "capacity": capacity} for name, capacity in fits]
        return lines, [variant.budgets for variant in variants] + [variants[0].budgets] * len(fits)
    outcome = _forced(probe, chosen, greedy if is_text else torch.tensor(row.answer), is_text)
    real = None
    if is_text and options.perplexity and len(row.continuation) > 1:
        real = _forced(probe, chosen, torch.tensor(row.continuation)).logprob[:, 1:]
    lines = []
    for index, choice in enumerate(chosen):
        line = _line(row, choice)
        if is_text:
            line["kl"] = f"{float(outcome.kl[index, 1:].mean()):.6f}"
            line["agree"] = f"{float(outcome.agree[index, 1:].float().mean()):.4f}"
        else:
            line["found"] = int(outcome.hit[index].all())
            line["full_found"] = int(outcome.hit[0].all())
            line["logprob"] = f"{float(outcome.logprob[index].sum()):.5f}"
        if real is not None:
            line["continuation_nll"] = f"{-float(real[index].mean()):.5f}"
        if row.depth is not None:
            line["depth"] = f"{row.depth:.4f}"
        lines.append(line)
    return lines, [variant.budgets for variant in variants]


def _written(row: Row, text: str) -> dict:
    return {"text": text, "writes": row.writes, "source": row.source}


def _asked(probe: Probe, row: Row, prompt: Prompt, chosen: list[Choice]) -> tuple[list[dict], list[torch.Tensor]]:
    """The questions one after the other over what was kept of the context, each before its answer."""
    is_text = row.task == "text"
    tail, spans = [], []
    for ask in row.asks:
        answer = list(ask.answer) or probe.greedy(prompt, FORCED, ask.question).tolist()
        spans.append((len(tail) + len(ask.question), len(tail) + len(ask.question) + len(answer)))
        tail += [*ask.question, *answer]
    judged = torch.cat([torch.arange(*span) for span in spans])
    outcome = _forced(probe, chosen, torch.tensor(tail), is_text, judged)
    lines, begin = [], 0
    for key, ask, span in zip(row.keys, row.asks, spans):
        part = slice(begin, begin + span[1] - span[0])
        begin = part.stop
        for index, choice in enumerate(chosen):
            line = _line(row, choice) | {"key": key, "template": ask.template, "question": "hidden"}
            if is_text:
                line["kl"] = f"{float(outcome.kl[index, part].mean()):.6f}"
                line["agree"] = f"{float(outcome.agree[index, part].float().mean()):.4f}"
            else:
                line["found"] = int(outcome.hit[index, part].all())
                line["full_found"] = int(outcome.hit[0, part].all())
                line["logprob"] = f"{float(outcome.logprob[index, part].sum()):.5f}"
            if ask.depth is not None:
                line["depth"] = f"{ask.depth:.4f}"
            lines.append(line)
    return lines, [choice.variant.budgets for choice in chosen] * len(row.asks)


def _replayed(probe: Probe, tokenizer, prompt: Prompt, row: Row) -> list[torch.Tensor]:
    return probe.replay(prompt, row.tokens, Instruction.of(tokenizer))["kvzip"]


def _line(row: Row, choice: Choice) -> dict:
    prompt = choice.facts.prompt
    kept = int(choice.variant.budgets.sum()) + prompt.window * choice.variant.budgets.numel()
    return dict.fromkeys(COLUMNS, "") | {
        "key": row.key,
        "task": row.task,
        "template": row.template,
        "tokens": prompt.tokens,
        "policy": choice.policy,
        "capacity": choice.capacity,
        "kept": kept,
        "bytes": round(kept * policies.row_bytes(choice.policy, choice.facts, choice.capacity)),
        "through": choice.through,
        "question": "shown",
    }


def profile_paths(options, described: dict) -> list[Path]:
    """Those that were given, or else the one that is known for these weights. Without one its policies are left out."""
    paths = options.profile
    if not paths:
        found = profiles.find(described)
        paths = [found[0]] if found else []
    needy = [name for name in options.policies if policies.rule(name).needs_profile]
    if needy and not paths:
        _note(f"{', '.join(needy)} left out: there is no profile of {described['name']}; make one with calibrate")
        options.policies = [name for name in options.policies if name not in needy]
    return paths


def _grid(text: str) -> tuple[list[int], list[float]]:
    lengths, _, depths = text.partition(":")
    return ranges.counts()(lengths), [ranges.number(0, 1)(depth) for depth in depths.split(",")]


def _shard(text: str) -> shard.Shard:
    try:
        return shard.parse(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


_PURPOSE = """Compares every policy at equal bytes on a real model: whether it finds facts hidden in text (needles), and how far
its next tokens are from the full cache's (texts).

What each policy keeps is chosen by a dkvd that is started for it, then tables of means are printed. Takes minutes to
hours, says how long after the first prompts, and goes on where it was stopped."""

_EXAMPLES = """what comes out:
  OUTPUT, a CSV with a line per prompt, policy and capacity; beside it the budgets and the record, OUTPUT's NAME.runs.json

examples:
  dkv eval smollm2 --profile mine.json
  dkv eval smollm2 -o try.csv --needles 1 --texts 1 --tokens 256                     a try
  dkv eval ~/models/Llama-3.2-1B --policies snapkv,dynamickv --capacity 128,256 --longbench ~/LongBench/data
  dkv eval smollm2 -o part-$I.csv --shard $I/4                                       one of four processes
  dkv eval smollm2 --policies joined --profile mine.json --risk 0.1 --seed 7         whether a certificate holds on other prompts
  dkv eval --again results.runs.json                                                 the same CSV, byte for byte
  dkv eval report results.csv                                                        the tables again; of shards: part-*.csv
  dkv eval figures results.csv -o figures/                                           PNG and SVG
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "dkv-lab eval"),
        description=_PURPOSE,
        epilog=_EXAMPLES,
        allow_abbrev=False,  # dkv certify refuses some of these flags by name.
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help='a Hugging Face folder, or "smollm2" or "gemma3-270m"')
    parser.add_argument("--profile", type=Path, action="append", default=[], help="may be given several times; by default the one of this model")
    parser.add_argument("--policies", default=DEFAULT, help="with parameters: profile/alpha=0.5/floor=0.2, joined/bits=4 (%(default)s)")
    parser.add_argument("--capacity", type=ranges.counts(), help=f"those below a prompt's length are used ({SIZES})")
    parser.add_argument("--risk", type=ranges.number(0, 1), metavar="SHARE", help="of one policy, at the size that dkv certify stored in the profile for this risk")
    parser.add_argument("--needles", type=ranges.count(), default=100, help="prompts with a fact to find, per length (%(default)s)")
    parser.add_argument("--texts", type=ranges.count(), default=48, help="prompts of running text, per length (%(default)s)")
    parser.add_argument("--ruler", type=ranges.count(), default=0, help="prompts of RULER's six tasks, per length (%(default)s)")
    parser.add_argument("--grid", type=_grid, metavar="LENGTHS:DEPTHS", help="needles for a heat map: 1024,2048,4096:0.1,0.5,0.9")
    parser.add_argument("--repeats", type=ranges.count(1), default=1, help="needles per cell of the grid (%(default)s)")
    parser.add_argument("--longbench", type=Path, metavar="PATH", help="a file of LongBench's, or a folder of them")
    parser.add_argument("--rows", type=ranges.count(1), help="of each LongBench task; by default all")
    parser.add_argument("--longest", type=ranges.count(1), default=3500, help="tokens to which LongBench's prompts are cut (%(default)s)")
    parser.add_argument("--tokens", type=ranges.counts(), default="1024", help="lengths of the prompts: 1024,4096 (%(default)s)")
    parser.add_argument("--family", choices=tuple(needles.FAMILIES), default="report", help="of needle templates")
    parser.add_argument("--part", choices=("calibration", "tuning", "report"), default="report", help="of the texts")
    parser.add_argument(
        "--question",
        choices=("shown", "hidden", "both"),
        default="both",
        help="shown: it stands in the prompt's window; hidden: it follows what was compressed (%(default)s)",
    )
    parser.add_argument("--perplexity", action="store_true", help="also of what really came next; doubles the forwards")
    parser.add_argument("--window", type=ranges.count(1), default=32, help="last tokens, whose queries score the others (%(default)s)")
    parser.add_argument("--seed", type=ranges.count(), default=1, help="of the choice of prompts (%(default)s)")
    parser.add_argument("--threads", type=ranges.count(1), help="of torch; by default its own choice")
    parser.add_argument("--inline", action="store_true", help="choose in torch, without a sidecar")
    parser.add_argument("--endpoint", help="of a sidecar that runs; by default a dkvd is started for the evaluation")
    parser.add_argument("--prefills", type=Path, help="keep prefills in this folder, for later runs")
    parser.add_argument("--shard", type=_shard, default=shard.Shard(), metavar="I/N", help=shard.HELP)
    parser.add_argument("-o", "--output", type=Path, default=Path("results.csv"), help="the results (%(default)s)")
    options = parser.parse_args(arguments)
    options.policies = options.policies.split(",")
    if options.risk is not None and (options.capacity or len(options.policies) > 1):
        parser.error("--risk takes the size of one policy from its certificate: leave --capacity out, and name one in --policies")
    # Under a risk known once the profile is read.
    options.capacity = [] if options.risk is not None else options.capacity or ranges.counts()(SIZES)
    try:
        for name in options.policies:
            if policies.rule(name).budgets is None and options.inline:
                parser.error(f"{name} is the sidecar's alone: leave --inline out")
            if policies.bits_of(name) == "mixed" and not options.inline:
                parser.error(f"{name}: a sidecar does not say in which order it would drop rows: give --inline")
    except policies.UnknownPolicy as unknown:
        parser.error(str(unknown))
    if not (options.needles or options.texts or options.ruler or options.grid or options.longbench):
        parser.error("no prompts: --needles, --texts and --ruler are 0")
    if options.inline and options.endpoint:
        parser.error("--inline needs no --endpoint")
    if options.capacity and min(options.capacity) <= options.window:
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


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["report"], ["figures"]):
        return {"report": tables, "figures": eval_figures}[arguments[0]].main(arguments[1:])
    if arguments[:1] == ["--again"]:
        return again(arguments[1:])
    options = parse(arguments)
    prompts = run(options, arguments)
    if options.shard.count > 1:  # Tables of a part would be read as the whole's.
        print(f"{options.output}: {prompts} prompts of shard {options.shard.index}/{options.shard.count}; dkv eval report joins the shards' files")
        return 0
    return tables.main([str(options.output)])


def run(options, arguments: list[str], was: dict | None = None) -> int:
    """Measures what the output lacks; how many prompts there are in all. was: the record that is to come out again."""
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer, name = models.load(options.model)
    attention = model.config._attn_implementation
    probe = Probe(model, options.window)
    described = profile.describe_model(model, probe.slidings, name)
    geometry = profile.Geometry(**described["geometry"])
    paths = profile_paths(options, described)
    loaded = {path.stem: profile.load(path, geometry) for path in paths}
    rows = [row for row in rows_for(tokenizer, options) if options.shard.has(row)]
    entry = record.start(described, arguments, options, model, attention)
    entry |= {"profiles": {name: record.profile_hash(one) for name, one in loaded.items()}, "prompts": record.prompts_hash(rows)}
    if options.risk is not None:
        entry |= {"certificate": _take_certificate(options, paths, loaded, described, rows)}
    if was is not None:
        for words in record.differences(was, entry):
            record.say(words)
        record.check(was, entry)
    store = PrefillStore(probe, described["config"] + described["weights"], options.prefills)
    results = Results(options.output)
    record.note(options.output, entry)
    todo = [row for row in rows if not results.has(row.keys, len(row.tokens), options.policies, options.capacity)]
    with chooser_for(options, name) as chooser, progress.of("evaluating", todo, len(rows) - len(todo)) as done:
        for row in todo:
            results.append(*evaluate(probe, store, tokenizer, row, options, loaded, chooser))
            done(row)
    record.note_end(options.output)
    return len(rows)


def _take_certificate(options, paths: list[Path], loaded: dict[str, profile.Profile], described: dict, rows: list[Row]) -> list:
    """Gives the options the certified size. Returns what of it decides the results."""
    if len(paths) != 1:
        raise UserError(f"--risk needs the one profile that has the certificate, not {len(paths)}")
    if loaded[paths[0].stem].model.get("weights") != described["weights"]:
        raise UserError(f"{paths[0]} was made for other weights: its certificates say nothing of {described['name']}")
    (name,) = options.policies
    found = policies.certified(name, options.window, paths[0], loaded[paths[0].stem], options.risk)
    outside = next(filter(None, (found.outside(len(row.tokens)) for row in rows)), None)
    if outside is not None:
        raise UserError(outside)
    options.capacity = [found.wish["capacity"]]
    _note(f"{name} at {options.capacity[0]}, {found.name}: {found.promise}")
    return [found.name, options.capacity[0]]


def again(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dkv eval --again",
        description="Runs an evaluation once more from its record, and says whether the same CSV came out, byte for byte.",
        epilog="Every prefill is computed anew. What is not as in the record, a version or the processor, is said before it runs.",
    )
    parser.add_argument("record", type=Path, metavar="RECORD", help="NAME.runs.json, which lies beside the CSV")
    parser.add_argument("-o", "--output", type=Path, help="the new CSV; by default NAME.again.csv beside the record")
    given = parser.parse_args(arguments)
    runs = record.to_make_again(given.record)
    output = given.output or given.record.with_name(given.record.name.removesuffix(".runs.json") + ".again.csv")
    if output.exists():
        raise UserError(f"{output}: is there already: give another output")
    for was in runs:
        options = parse(was["arguments"])
        options.shard = shard.parse(was["shard"])  # Not that of this machine's array job.
        torch.set_num_threads(was["machine"]["threads"])
        options.output, options.prefills = output, None
        run(options, was["arguments"], was)
    return 0 if record.compare(output, runs[-1]) else 1
