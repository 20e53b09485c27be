"""Runs a Python script as it is, with compressed KV caches.

Every generate() of transformers in it that brings no cache of its own gets a dkv.hf.Cache, which a running dkvd
compresses. Without a dkvd, and where a model or a call cannot be compressed, generate() does what it always does
and the reason is logged. The script's output, arguments and exit status are its own.
"""

from __future__ import annotations

import argparse
import errno
import functools
import json
import logging
import os
import runpy
import sys

from transformers.generation.utils import GenerationMixin

import dkv

from .announce import announced, repeats_rows, setting, why_left_alone
from .cache import Cache
from .options import check_risk
from .profile_file import ProfileError
from .report import Report

log = logging.getLogger("dkv.hf")

_EXAMPLES = """examples:
  python -m dkv.hf chat.py --model my-model
  python -m dkv.hf --policy snapkv --capacity 256 --report saved.json chat.py
  python -m dkv.hf -m my_package.serve --port 8000
"""


def main(argv: list[str] | None = None) -> None:
    options = _parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    reports: list[dict] = []
    wish = {"policy": options.policy, "capacity": options.capacity, "endpoint": options.endpoint}
    wish |= {"profile": options.profile, "force_profile": options.force_profile, "risk": options.risk}
    wrap_generate(wish, reports)
    try:
        _run(options)
    finally:
        if options.report:
            with open(options.report, "w", encoding="utf-8") as file:
                json.dump(reports, file, indent=2)
                file.write("\n")


def wrap_generate(wish: dict, reports: list[dict]) -> None:
    """Every model's generate() without past_key_values gets a Cache(**wish); its report is added to `reports`."""
    original = GenerationMixin.generate

    @functools.wraps(original)
    def generate(self, *args, **kwargs):
        if setting(self, kwargs, "is_assistant"):  # Of another model's generate(), which has the report.
            return original(self, *args, **kwargs)
        reason = _reason_to_leave_alone(self, kwargs)
        if reason is not None:
            log.info("dkv: generate() is left alone: %s", reason)
            reports.append(Report(failure=reason).as_dict())
            return original(self, *args, **kwargs)
        try:
            cache = Cache(self, **wish)
        except ProfileError as error:
            if wish.get("risk") is None:
                raise
            # The script's other models have certificates of their own, or none.
            log.warning("dkv: generate() is left alone: %s", error)
            reports.append(Report(failure=str(error)).as_dict())
            return original(self, *args, **kwargs)
        kwargs["past_key_values"] = cache
        with announced(cache, args, kwargs, self):
            out = original(self, *args, **kwargs)
        reports.append(cache.report().as_dict())
        return out

    GenerationMixin.generate = generate


def _reason_to_leave_alone(model, kwargs: dict) -> str | None:
    if kwargs.get("past_key_values") is not None:
        return "it has a cache"
    if setting(model, kwargs, "use_cache") is False:
        return "it uses no cache"
    implementation = setting(model, kwargs, "cache_implementation")
    if implementation is not None:
        return f"it wants a {implementation} cache"
    return why_left_alone(model) or repeats_rows(model, kwargs)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dkv.hf", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", default=os.environ.get("DKV_POLICY"), help="what keeps tokens [DKV_POLICY, else the sidecar's]: dkv policy list"
    )
    parser.add_argument(
        "--capacity",
        type=int,
        default=os.environ.get("DKV_CAPACITY"),
        metavar="N",
        help="mean tokens kept per layer and KV head [DKV_CAPACITY, else the sidecar's]",
    )
    parser.add_argument(
        "--profile",
        default=os.environ.get("DKV_PROFILE"),
        metavar="FILE",
        help='what dkv calibrate wrote, or "auto": the one of the model, if there is one [DKV_PROFILE]',
    )
    parser.add_argument("--force-profile", action="store_true", help="also take a profile that was made for other weights")
    parser.add_argument("--risk", type=float, metavar="SHARE", help="size and parameters from the profile's certificate: 0.05 (dkv certify)")
    parser.add_argument("--endpoint", default=None, help="where the sidecar listens [DKV_ENDPOINT, else this user's]")
    parser.add_argument("--report", metavar="FILE", help="write what each generate() saved, a JSON list")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="the Python file to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="of the script").required = False
    options = parser.parse_args(argv)
    try:
        dkv.Policy(name=options.policy, capacity=options.capacity)
        if options.risk is not None:
            check_risk(options.risk)
    except dkv.DkvError as error:
        parser.error(str(error))
    if options.risk is not None and (options.capacity is not None or options.force_profile):
        parser.error("--risk takes the size from a certificate: leave --capacity, DKV_CAPACITY and --force-profile out")
    return options


def _run(options: argparse.Namespace) -> None:
    sys.argv = [options.script, *options.arguments]
    if options.module:
        sys.path[0] = os.getcwd()
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
    else:
        if not os.path.exists(options.script):
            sys.exit(f"python -m dkv.hf: {options.script}: {os.strerror(errno.ENOENT)}")
        sys.path[0] = os.path.dirname(os.path.abspath(options.script))
        runpy.run_path(options.script, run_name="__main__")


if __name__ == "__main__":
    main()
