"""Certifies the smallest size whose risk of losing much is small: Learn-then-Test over what `dkv eval` measured.

A request is lost when its utility with the full cache, less that with the policy, is above tau. The sizes are fixed
beforehand. From the largest down, each is tested against "its risk is above epsilon" by the binomial tail, until the
first that cannot be rejected at level delta; the last that was rejected is certified. Testing in a fixed order and
stopping at the first failure keeps the chance of certifying any size whose risk is above epsilon below delta.

Of a MODEL the requests are measured first, by dkv eval, whose flags for them follow --. Their seed is drawn at random,
so that no policy was tuned on them; the same command goes on where it was stopped.

    dkv certify smollm2 --policy joined --capacity 128,256,512 --profile mine.json -- --needles 60 --texts 0 --tokens 1024
    dkv certify results.csv --policy joined
"""

from __future__ import annotations

import argparse
import math
import os
import re
import secrets
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError
from dkv.hf import profile_file

from . import evaluate, policies, ranges, record, results

# Of dkv eval, after --: what certify says itself.
_OWN = ("--policies", "--capacity", "--risk", "--question", "--profile", "--seed", "--part", "--family", "--shard", "-o", "--output")


def p_value(losses: int, requests: int, epsilon: float) -> float:
    """P(Binomial(requests, epsilon) <= losses): how likely so few are where the risk is epsilon, and more so above it."""
    logs = [
        math.lgamma(requests + 1) - math.lgamma(k + 1) - math.lgamma(requests - k + 1)
        + k * math.log(epsilon) + (requests - k) * math.log1p(-epsilon)
        for k in range(losses + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def losses_allowed(requests: int, epsilon: float, delta: float) -> int:
    """The most losses with which a size is certified; -1: not even none."""
    allowed = -1
    while allowed < requests and p_value(allowed + 1, requests, epsilon) <= delta:
        allowed += 1
    return allowed


def walk(losses: list[int], allowed: int) -> int | None:
    """Index of the last size that passes before the first that does not; None: keep the cache whole.

    `losses` of the sizes from the largest to the smallest.
    """
    passed = None
    for index, count in enumerate(losses):
        if count > allowed:
            break
        passed = index
    return passed


@dataclass(frozen=True)
class Study:
    """Of one policy: how many of the same requests each size loses."""

    policy: str
    requests: int
    sizes: list[int]  # From the largest to the smallest.
    losses: list[int]
    tasks: dict[str, int]  # Requests of each, which is the mix that a certificate holds for.
    tokens: tuple[int, int]  # The shortest and the longest prompt.


def study(lines: list[dict], policy: str, sizes: list[int] | None, tau: float, question: str) -> Study:
    """Raises UserError for what cannot be certified from."""
    absent = {"key", "task", "tokens", "policy", "capacity", "kl", "found"} - set(lines[0] if lines else {})
    if absent:
        raise UserError(f"not results of dkv eval: {'there is no line' if not lines else 'no column ' + sorted(absent)[0]}")
    chosen = [line for line in lines if question in ("both", line["question"])]
    full = {line["key"]: line for line in chosen if line["policy"] == "fullkv"}
    mine = [line for line in chosen if line["policy"] == policy]
    if not mine:
        known = ", ".join(sorted({line["policy"] for line in chosen} - {"fullkv"}))
        raise UserError(f"no request of policy {policy} with question {question}: there are {known or 'none at all'}")
    sizes = sorted(sizes or {int(line["capacity"]) for line in mine}, reverse=True)
    lost: dict[int, dict[str, bool]] = {size: defaultdict(bool) for size in sizes}
    for line in mine:
        if int(line["capacity"]) in lost:
            # The questions over one context share its cache: lost is the request that loses any.
            lost[int(line["capacity"])][_request(line)] |= not _loss(line, full) <= tau  # NaN is lost.
    everyone = {_request(line): line for line in mine}
    for size in sizes:
        missing = sorted(set(everyone) - set(lost[size]))
        if missing:
            raise UserError(f"{policy} at {size} lacks {len(missing)} of {len(everyone)} requests ({missing[0]}, …): every size needs the same ones")
    tasks: dict[str, int] = defaultdict(int)
    for line in everyone.values():
        tasks[f"{line['task']} {line['question']}"] += 1
    tokens = [int(line["tokens"]) for line in everyone.values()]
    counts = [sum(lost[size].values()) for size in sizes]
    return Study(policy, len(everyone), sizes, counts, dict(sorted(tasks.items())), (min(tokens), max(tokens)))


def _request(line: dict) -> str:
    return re.sub(r"-q\d+$", "", line["key"]) if line["question"] == "hidden" else line["key"]


def _loss(line: dict, full: dict[str, dict]) -> float:
    """Utility with the full cache, less that with the policy: found, a task's score, or minus the KL of the next tokens."""
    if line["key"] not in full:
        raise UserError(f"request {line['key']} has no line of fullkv, which its loss is measured against")
    if line["kl"]:
        return float(line["kl"])
    for column in ("found", "score"):
        if line.get(column):
            return float(full[line["key"]][column]) - float(line[column])
    raise UserError(f"request {line['key']} of {line['policy']} has neither kl, found nor score")


def measured_model(runs: list[dict], profile: dict | None) -> None:
    """Raises UserError for results of several models, or of another than the profile's: `profile` describes its model."""
    models = {_identity(run["model"]): run["model"] for run in runs}
    if len(models) > 1:
        raise UserError(f"results of {len(models)} models ({_named(models.values())}): a certificate is of one")
    if profile is None:
        return
    if not models:
        raise UserError("there is no .runs.json beside the results to say which model they are of: a profile's certificate needs it")
    if _identity(profile) not in models:
        raise UserError(f"results of {_named(models.values())}, and a profile of {_named([profile])}: another model")


def _identity(described: dict) -> tuple:
    return described.get("config"), described.get("weights")


def _named(models) -> str:
    return ", ".join(f"{model['name']} (config {model.get('config')}, weights {model.get('weights')})" for model in models)


def measured_profile(policy: str, runs: list[dict], profile: profile_file.Profile) -> None:
    """Raises UserError for results of a policy that another profile of this model made. Earlier records do not say which
    it was."""
    if not policies.rule(policy).needs_profile:
        return
    used = {one for run in runs for one in run.get("profiles", {}).values()}
    if used - {record.profile_hash(profile)}:
        raise UserError("the results were measured with another profile: a certificate is of the one that it is stored in")


def certificate(made: Study, tau: float, epsilon: float, delta: float) -> dict:
    """What is stored in a profile. "capacity" 0: none, keep the cache whole."""
    passed = walk(made.losses, losses_allowed(made.requests, epsilon, delta))
    return {
        "capacity": 0 if passed is None else made.sizes[passed],
        "tau": tau,
        "epsilon": epsilon,
        "delta": delta,
        "requests": made.requests,
        "losses": 0 if passed is None else made.losses[passed],
        "tasks": ", ".join(f"{count} {task}" for task, count in made.tasks.items()),
        "tokens": list(made.tokens),
        "tried": [[size, count] for size, count in zip(made.sizes, made.losses)],
    }


def words(policy: str, made: dict) -> str:
    tried = ", ".join(f"{count} lost at {size}" for size, count in made["tried"])
    mix = f"{made['requests']} requests ({made['tasks']}; {made['tokens'][0]} to {made['tokens'][1]} tokens): {tried}"
    if not made["capacity"]:
        return f"{policy}: none: keep it whole. {mix}. At risk {made['epsilon']:g} and confidence {1 - made['delta']:g}, {_needed(made)}"
    return (
        f"{policy} at {made['capacity']} tokens a head: at most {100 * made['epsilon']:g} % of such requests lose more than {made['tau']:g},"
        f" with confidence {1 - made['delta']:g}. {mix}"
    )


def _needed(made: dict) -> str:
    allowed = losses_allowed(made["requests"], made["epsilon"], made["delta"])
    if allowed >= 0:
        return f"{allowed} may be lost."
    return f"{math.ceil(math.log(made['delta']) / math.log1p(-made['epsilon']))} requests are needed, none of them lost."


def parse(arguments: list[str]) -> argparse.Namespace:
    own, flags = arguments, []
    if "--" in arguments:
        own, flags = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "dkv-lab certify"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS|MODEL", help="CSV files of dkv eval, also of its shards; or a model as dkv eval takes it"
    )
    parser.add_argument("--policy", required=True, help="as dkv eval names it: profile, snapkv/kernel=15; auto with a profile is joined")
    parser.add_argument("--capacity", type=ranges.counts(), help=f"the sizes to try, chosen before the results are seen; all there are, of a model {evaluate.SIZES}")
    parser.add_argument("--tau", type=ranges.number(0), default=0.1, help="a loss above this counts: of found (1 or 0), score, or KL (%(default)s)")
    parser.add_argument("--epsilon", type=ranges.share, default=0.05, help="the risk: the share of requests that may be lost (%(default)s)")
    parser.add_argument("--delta", type=ranges.share, default=0.05, help="1 - confidence (%(default)s)")
    parser.add_argument("--question", choices=("shown", "hidden", "both"), default="both", help="which requests count (%(default)s)")
    parser.add_argument("--profile", type=Path, help="store the certificate in this profile, for dkv compact and policy set --risk")
    parser.add_argument("-o", "--output", type=Path, help="of a model: what is measured (certify.csv)")
    options = parser.parse_args(own)
    options.model = None if all(name.endswith(".csv") for name in options.results) else options.results[0]
    if options.model is not None and len(options.results) > 1:
        parser.error(f"{' '.join(options.results)}: CSV files, or one model")
    if options.model is None and flags:
        parser.error("flags after -- are of dkv eval, which measures a MODEL")
    if options.model is None and options.output is not None:
        parser.error("-o is of a MODEL: of results nothing is measured")
    options.output = options.output or Path("certify.csv")
    for flag in flags:
        if flag.split("=", 1)[0] in _OWN:
            parser.error(f"{flag} after --: certify says that itself")
    options.flags = flags
    return options


def measure(options: argparse.Namespace, loaded: profile_file.Profile | None = None) -> Path:
    """Runs dkv eval with a freshly drawn seed, or goes on with such a run. Returns its CSV."""
    if loaded is not None:
        policies.as_flags(options.policy, 1, loaded)  # What cannot be stored is refused before hours of measuring.
    sizes = ",".join(map(str, options.capacity)) if options.capacity else evaluate.SIZES
    wanted = [options.model, "--policies", options.policy, "--capacity", sizes, "--question", options.question, *options.flags]
    if options.profile is not None:
        wanted += ["--profile", str(options.profile)]
    runs = results.read_runs([options.output])
    arguments = runs[-1].get("arguments") if runs else [*wanted, "--seed", str(secrets.randbits(48)), "-o", str(options.output)]
    if arguments is None or [*arguments[:-4], *arguments[-2:]] != [*wanted, "-o", str(options.output)]:
        raise UserError(f"{options.output}: other requests were measured into it: give another -o")
    evaluate.run(evaluate.parse(arguments), arguments)
    return options.output


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    loaded = profile_file.load(options.profile) if options.profile is not None else None
    paths = [Path(name) for name in options.results] if options.model is None else [measure(options, loaded)]
    runs = results.read_runs(paths)
    measured_model(runs, loaded and loaded.model)
    made = study(results.read(paths), options.policy, options.capacity, options.tau, options.question)
    found = certificate(made, options.tau, options.epsilon, options.delta)
    print(words(options.policy, found))
    if loaded is not None:
        measured_profile(options.policy, runs, loaded)
        flags = policies.as_flags(options.policy, runs[-1]["window"], loaded)
        seeds = sorted({run["seed"] for run in runs})
        loaded.figures[f"certified {options.policy}, question {options.question}"] = found | {"seeds": seeds, "flags": flags}
        loaded.save(options.profile)
        print(f"{options.profile}: the certificate is in it")
    return 0
