"""Measures what each layer or KV head is worth, and writes it as a profile.

All are kept whole but one, and the answer's damage is read off (damage); then all are cut but one gets
more (restore.py); the two are joined.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from dkv.hf import models
from dkv.hf import profile_file as profile

from . import distil, needles, progress, ranges, restore, scores, surrogate
from .needles import Row
from .probe import Probe, Prompt, Variant
from .store import PrefillStore

TASKS = ("needle", "text")


def rows_for(tokenizer, task: str, count: int, tokens: int, seed: int) -> list[Row]:
    if task == "needle":
        return needles.needle_rows(tokenizer, "calibration", "calibration", count, tokens, seed)
    return needles.text_rows(tokenizer, "calibration", count, tokens, seed)


def one_cut_variants(prompt: Prompt, granularity: str, base: int) -> list[Variant]:
    """Everything whole, then everything but one layer or head."""
    layers, heads = len(prompt.compressed), prompt.kv_heads
    whole = torch.full((layers, heads), prompt.prefix)
    variants = [Variant("whole", whole)]
    for layer in range(layers):
        for head in range(heads) if granularity == "head" else [slice(None)]:
            budgets = whole.clone()
            budgets[layer, head] = min(base, prompt.prefix)
            variants.append(Variant(f"{layer}.{head}", budgets))
    return variants


def measure(probe: Probe, store: PrefillStore, row: Row, granularity: str, base: int, forced: int, kernel: int = 7) -> dict:
    """One prompt's damages: Σ log-probability lost for a needle, mean KL for text.

    A needle that the full cache does not find says nothing about the cache: its damage is None.
    """
    is_text = not row.answer
    prompt, greedy = store.prefill(row.tokens, greedy=forced + 1 if is_text else 0)
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt, kernel))
    answer = greedy if is_text else torch.tensor(row.answer)
    record = {"key": row.key, "task": row.task, "template": row.template, "damage": None}
    if not is_text:
        found = probe.force(prompt, answer, [_whole(prompt)], rankings)
        record["logprob"] = float(found.logprob.sum())
        if not bool(found.hit.all()):
            return record
    outcome = probe.force(prompt, answer, one_cut_variants(prompt, granularity, base), rankings, compare=is_text)
    if is_text:
        damage = outcome.kl[1:, 1:].mean(1)
    else:
        totals = outcome.logprob.sum(1)
        damage = totals[0] - totals[1:]
    record["damage"] = [round(value, 7) for value in damage.tolist()]
    return record


def mean_damages(records: list[dict], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Per task the mean over its prompts, [layers, heads or 1]."""
    out = {}
    for task in sorted({record["task"] for record in records}):
        damages = [record["damage"] for record in records if record["task"] == task and record["damage"] is not None]
        if damages:
            out[task] = torch.tensor(damages, dtype=torch.float64).mean(0).view(shape)
    return out


def combine(damages: dict[str, torch.Tensor]) -> torch.Tensor:
    """One weight per head from the tasks' damages: each clipped at 1e-5 and divided by its sum, then the mean."""
    shares = [(damage.double().clamp_min(1e-5)) for damage in damages.values()]
    return torch.stack([share / share.sum() for share in shares]).mean(0)


def build_profile(
    records: list[dict], described: dict, recipe: dict, alpha: float, floor: float, restored: list[dict] = ()
) -> profile.Profile:
    """From the damages alone, or joined with what `restored` heads gained."""
    geometry = profile.Geometry(**described["geometry"])
    shape = (len(geometry.compressed), geometry.kv_heads if recipe["granularity"] == "head" else 1)
    damages = mean_damages(records, shape)
    if not damages:
        raise profile.ProfileError("no prompt could be measured: the model answers none of the needles and no text was asked for")
    figures = {
        task: {
            "prompts": sum(record["task"] == task and record["damage"] is not None for record in records),
            "tried": sum(record["task"] == task for record in records),
            "damage": [[round(value, 7) for value in row] for row in damage.tolist()],
        }
        for task, damage in damages.items()
    }
    sizes = damages
    if restored:
        gains = restore.mean_gains(restored, shape)
        base = recipe["cut"] - recipe["window"]
        sizes = {t: restore.sizes(damages[t], gains[t], base, recipe["window"], alpha) for t in damages if t in gains}
        for task in sizes:
            figures[task]["gain"] = [[round(value, 7) for value in row] for row in gains[task]["gain"].tolist()]
            figures[task]["loss"] = round(gains[task]["loss"], 6)
    weights = [[round(value, 9) for value in row] for row in combine(sizes).tolist()]
    return profile.Profile(described, recipe, recipe["granularity"], alpha, floor, weights, figures, recipe["kernel"])


class Journal:
    """What was measured already: JSON lines beside the output, the recipe first."""

    def __init__(self, path: Path, header: dict):
        self._path = path
        self.records: list[dict] = []
        if path.exists():
            lines = path.read_text().splitlines()
            if not lines or json.loads(lines[0]) != header:
                raise profile.ProfileError(f"{path} was measured with another model or recipe: remove it or choose another output")
            self.records = [json.loads(line) for line in lines[1:] if line.endswith("}")]
            path.write_text("\n".join([lines[0], *map(json.dumps, self.records)]) + "\n")
        else:
            path.write_text(json.dumps(header) + "\n")

    def __contains__(self, key: str) -> bool:
        return any(record["key"] == key for record in self.records)

    def append(self, record: dict) -> None:
        self.records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _whole(prompt: Prompt) -> Variant:
    return Variant("whole", torch.full((len(prompt.compressed), prompt.kv_heads), prompt.prefix))


def _restore(probe: Probe, store: PrefillStore, rows: list[Row], first: profile.Profile, options, header: dict) -> list[dict]:
    settings = header | {"weights": first.weights, "alpha": first.alpha, "floor": first.floor}
    settings |= {"restore": options.restore, "step": options.step}
    journal = Journal(options.output.with_suffix(".restore.jsonl"), settings)
    todo = [row for row in rows if row.key not in journal]
    with progress.of("restoring", todo, len(rows) - len(todo)) as done:
        for row in todo:
            journal.append(restore.measure(probe, store, row, first, options.restore, options.step, options.forced))
            done(row)
    wanted = {row.key for row in rows}
    return [record for record in journal.records if record["key"] in wanted]


_PURPOSE = """Measures what each layer or KV head of a model is worth, and writes it as a profile: with one, dynamickv and auto
keep more of what counts in the same bytes.

One head at a time is cut, and how much worse the answers get is read off; then all are cut and one at a time gets
more. The prompts are needles (facts hidden in text) and running text found on this machine. Needs no sidecar. Takes
minutes for a small model, says how long after the first prompts, and goes on where it was stopped."""

_EXAMPLES = """what comes out:
  OUTPUT, a JSON file (dkv profile show FILE draws it), and OUTPUT with .jsonl for a suffix: what was measured so far

examples:
  dkv calibrate smollm2 -o mine.json
  dkv calibrate ~/models/Llama-3.2-1B -o llama.json
  dkv calibrate smollm2 -o mine.json --surrogate                                     adds the surrogate to mine.json
  dkv calibrate smollm2 -o try.json --granularity layer --needles 1 --texts 1 --tokens 256    a try

then:
  cache = dkv.hf.Cache(model, capacity=128, profile="mine.json")
  dkv eval smollm2 --profile mine.json
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "dkv-lab calibrate"),
        description=_PURPOSE,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help='a Hugging Face folder, or "smollm2" or "gemma3-270m"')
    parser.add_argument("--tasks", default="needle,text", help="what damage is measured on (%(default)s)")
    parser.add_argument("--granularity", choices=("layer", "head"), default="head", help="what is cut one at a time (%(default)s)")
    parser.add_argument("--needles", type=ranges.count(), default=24, help="prompts with a fact to find (%(default)s)")
    parser.add_argument("--texts", type=ranges.count(), default=10, help="prompts of running text (%(default)s)")
    parser.add_argument("--tokens", type=ranges.count(1), default=1024, help="length of the prompts (%(default)s)")
    parser.add_argument("--cut", type=ranges.count(1), default=128, help="capacity of the one layer or head that is cut (%(default)s)")
    parser.add_argument("--window", type=ranges.count(1), default=32, help="last tokens, whose queries score the others (%(default)s)")
    parser.add_argument("--forced", type=ranges.count(1), default=16, help="greedy tokens a text's damage is the mean of (%(default)s)")
    parser.add_argument("--kernel", type=ranges.count(1), default=15, help="of the scores' pooling, here and where the profile is used (%(default)s)")
    parser.add_argument("--seed", type=ranges.count(), default=0, help="of the choice of prompts (%(default)s)")
    parser.add_argument(
        "--restore", type=ranges.count(), default=128, help="capacity at which one at a time gets more; 0: not measured (%(default)s)"
    )
    parser.add_argument("--step", type=ranges.count(1), default=128, help="how much more (%(default)s)")
    parser.add_argument("--alpha", type=ranges.number(0, 8), default=0.7, help="budgets grow as weight^alpha (%(default)s)")
    parser.add_argument("--floor", type=ranges.number(0, 1), default=0.2, help="the least budget, as a share of the mean (%(default)s)")
    parser.add_argument(
        "--surrogate",
        type=ranges.count(2),
        nargs="?",
        const=surrogate.TEXTS,
        metavar="TEXTS",
        help="also fit, on so many texts, what predicts replay scores, which reuse and auto rank by, and train it on answers; into "
        f"the profile OUTPUT where that was made for this model, else into a new one ({surrogate.TEXTS})",
    )
    parser.add_argument("--threads", type=ranges.count(1), help="of torch; by default its own choice")
    parser.add_argument("--prefills", type=Path, help="keep prefills in this folder, for later runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("profile.json"), help="the profile (%(default)s)")
    options = parser.parse_args(arguments)
    options.tasks = options.tasks.split(",")
    unknown = set(options.tasks) - set(TASKS)
    if unknown:
        parser.error(f"unknown task {', '.join(sorted(unknown))}: there are {', '.join(TASKS)}")
    if options.kernel % 2 == 0:
        parser.error(f"--kernel {options.kernel}: expected an odd number")
    if options.restore and not 0 < options.alpha < 1:
        parser.error(f"--alpha {options.alpha:g}: expected a number between 0 and 1, or --restore 0")
    if options.restore > options.tokens:
        parser.error(f"--restore {options.restore} is more than --tokens {options.tokens}")
    if options.restore and options.restore <= options.window:
        parser.error(f"--restore {options.restore} leaves nothing beside the window of {options.window}")
    if options.cut <= options.window:
        parser.error(f"--cut {options.cut} leaves nothing beside the window of {options.window}")
    if options.tokens <= options.cut:
        parser.error(f"--tokens {options.tokens} is no more than --cut {options.cut}: nothing would be cut")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer, name = models.load(options.model)
    probe = Probe(model, options.window)
    described = profile.describe_model(model, probe.slidings, name)
    made = _known(options.output, described)
    if made is None or not options.surrogate:
        surrogate_before = made and made.surrogate
        made = _calibrated(probe, tokenizer, described, options)
        made.surrogate = surrogate_before
        made.save(options.output)
        used = ", ".join(f"{figures['prompts']} of {figures['tried']} {task}" for task, figures in made.figures.items() if task in TASKS)
        print(f"{options.output}: {options.granularity} profile of {name} from {used} prompts")
    if options.surrogate:
        made.surrogate = surrogate.fit_model(probe, tokenizer, options.surrogate, options.tokens, options.seed)
        made.surrogate = distil.improved(probe, tokenizer, made, max(2, options.surrogate // 2), options.tokens, options.seed)
        # Certificates are of the profile that was measured.
        made.figures = {task: figures for task, figures in made.figures.items() if "flags" not in figures}
        made.save(options.output)
        print(f"{options.output}: {surrogate.words(made.predictor())}")
    return 0


def _known(path: Path, described: dict) -> profile.Profile | None:
    """The profile that is there already, where it was made for these weights."""
    try:
        found = profile.load(path, profile.Geometry(**described["geometry"]))
    except profile.ProfileError:
        return None
    return found if found.model.get("weights") == described["weights"] else None


def _calibrated(probe: Probe, tokenizer, described: dict, options) -> profile.Profile:
    names = ("tasks", "granularity", "needles", "texts", "tokens", "cut", "window", "forced", "kernel", "seed")
    recipe = {name: getattr(options, name) for name in names} | {"method": "damage", "pool": "max", "reduce": "mean"}
    # More prompts may be added later: the journal does not depend on how many there are.
    header = {"model": described, "recipe": {k: v for k, v in recipe.items() if k not in ("needles", "texts", "tasks")}}
    journal = Journal(options.output.with_suffix(".jsonl"), header)
    store = PrefillStore(probe, described["config"] + described["weights"], options.prefills)

    counts = {"needle": options.needles, "text": options.texts}
    rows = needles.in_turn([rows_for(tokenizer, task, counts[task], options.tokens, options.seed) for task in options.tasks])
    todo = [row for row in rows if row.key not in journal]
    after = "; restoring, which comes next, takes about as long" if options.restore else ""
    with progress.of("calibrating", todo, len(rows) - len(todo), after) as done:
        for row in todo:
            journal.append(measure(probe, store, row, options.granularity, options.cut - options.window, options.forced, options.kernel))
            done(row)
    wanted = {row.key for row in rows}
    records = [record for record in journal.records if record["key"] in wanted]
    made = build_profile(records, described, recipe, options.alpha, options.floor)
    useful = {record["key"] for record in records if record["damage"] is not None}
    if options.restore:
        restored = _restore(probe, store, [row for row in rows if row.key in useful], made, options, header)
        recipe |= {"restore": options.restore, "step": options.step}
        made = build_profile(records, described, recipe, options.alpha, options.floor, restored)
    return made

