"""Saved caches in an object store: `dkv ls`, `verify`, `compact` and `prune` on URLs, through fsspec.

    dkv-lab store ls s3://bucket/caches -r
    dkv-lab store verify s3://bucket/caches
    dkv-lab store compact s3://bucket/caches -o s3://bucket/small -- --capacity 256
    dkv-lab store prune s3://bucket/caches --budget 10GiB --dry-run

A cache is one object, or the objects of a folder (vLLM's layers, LMCache's chunks); the program dkv works on a copy in
the folder for temporary files (TMPDIR). What follows -- is for dkv. Objects appear whole or not at all, and none is
written over that changed meanwhile. compact and prune write to S3 alone, whose writes can be made conditional; ls and
verify read what fsspec reads.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dkv import programs
from dkv.errors import UserError

from .object_store import Cache, Changed, Store, digest, make_folder

# After --: what these words mean for one copy is not what they mean for the store.
_OWN = ("-r", "--recursive", "-o", "--output", "--budget", "--dry-run", "--delete", "--json", "--shard", "--force", "--settle-s", "--watch", "-j", "--jobs")
# Of dkv's, after --: how a file is read (cli/saved/open_flags.cc).
_OPEN = ("--input-format", "--layout", "--kv-heads", "--model", "--rope-theta", "--rope-interleaved", "--rope-dims", "--key-order")


def _dkv(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([str(programs.find("dkv")), *map(str, arguments)], capture_output=True, text=True)


def caches_of(store: Store, recursive: bool, flags: list[str], scratch: Path) -> list[Cache]:
    """What `dkv ls` finds in a folder of the objects' headers, under their names. Raises UserError for none."""
    objects, caches = store.objects(recursive), []
    root, rest = scratch / "all" / store.url.rsplit("/", 1)[-1], scratch / "rest"
    make_folder(root, store.url)
    others = [each for each in objects if not store.head(each, root / each.name)]
    listed = [(root, _listed(root, recursive, flags))]
    for each in others:  # One at a time: headers among the rows need all of the object, and a disk may not hold all objects.
        try:
            store.get_object(each, rest / each.name)
        except Changed as changed:
            caches.append(Cache(each.url, each.name, [each], {"file": each.url, "error": str(changed)}))
        else:
            listed.append((rest, _listed(rest, True, flags)))
        shutil.rmtree(rest, ignore_errors=True)
    urls = {each.name: each.url for each in objects}
    for copies, (found, _) in listed:
        for facts in found:
            name = str(Path(facts["file"]).relative_to(copies))
            name = "" if name == "." else name
            url = urls.get(name) or "/".join(filter(None, [store.url, name]))
            if "error" in facts:
                facts["error"] = _about(_about(facts["error"], Path(facts["file"]), url), copies, store.url)
            parts = [each for each in objects if name in ("", each.name) or each.name.startswith(f"{name}/")]
            caches.append(Cache(url, name, parts, facts | {"file": url}))
    if not caches:
        raise UserError(_about(listed[0][1][1], root, store.url) or f"{store.url}: dkv ls said nothing")
    return sorted(caches, key=lambda cache: cache.name)


def _listed(root: Path, recursive: bool, flags: list[str]) -> tuple[list[dict], str]:
    """What `dkv ls` says of each cache, and for people."""
    done = _dkv("ls", *(["-r"] if recursive else []), "--json", root, *flags)
    try:
        return json.loads(done.stdout).get("caches", []), done.stderr
    except ValueError:
        if "no saved cache" in done.stderr:
            return [], done.stderr
        raise UserError(f"dkv ls failed: {done.stderr.strip() or done.returncode}") from None


def _about(words: str, copy: Path, url: str) -> str:
    """dkv's words of a copy, as words of the object."""
    return words.strip().removeprefix("dkv: ").replace(str(copy), url)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text, re.I)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: expected bytes, 10GiB")
    power = " KMGT".index((match[2] or " ")[0].upper())
    return int(float(match[1]) * 1024**power)  # As dkv has it: GB is GiB there, too.


def parse(arguments: list[str]) -> argparse.Namespace:
    own, flags = arguments, []
    if "--" in arguments:
        own, flags = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="dkv-lab store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("ls", "verify", "compact", "prune"))
    parser.add_argument("url", metavar="URL", help="a folder of objects, or one cache")
    parser.add_argument("-r", "--recursive", action="store_true", help="also what is in folders of folders")
    parser.add_argument("-o", "--output", metavar="URL", help="compact: the folder to write")
    parser.add_argument("--budget", type=_bytes, metavar="BYTES", help="prune: bytes of all caches together, 10GiB")
    parser.add_argument("--delete", action="store_true", help="prune: delete the oldest where compaction is not enough")
    parser.add_argument("--dry-run", action="store_true", help="prune: say what would come of it; change nothing")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    options = parser.parse_args(own)
    if (options.work == "compact") != (options.output is not None):
        parser.error("-o goes with compact, and compact needs it")
    if (options.work == "prune") != (options.budget is not None):
        parser.error("--budget goes with prune, and prune needs it")
    if options.work != "prune" and (options.delete or options.dry_run):
        parser.error("--delete and --dry-run go with prune")
    for flag in flags:
        if flag.split("=", 1)[0] in _OWN:
            parser.error(f"{flag} after --: not of one copy: give it before --, or leave it out")
    options.flags = flags
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        return _run(options)
    except Exception as error:  # Drivers have errors of their own, which a user can mend: keys, a server, a bucket.
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise UserError(f"{options.url}: {error}") from None
        raise


def _open_flags(flags: list[str]) -> list[str]:
    """Those that say how a file is read: dkv ls knows no policy."""
    found, rest = [], list(flags)
    while rest:
        flag = rest.pop(0)
        name = flag.split("=", 1)[0]
        if name in _OPEN:
            found += [flag] if "=" in flag or name == "--rope-interleaved" else [flag, *rest[:1]]
    return found


def _run(options: argparse.Namespace) -> int:
    store = Store(options.url)
    target = Store(options.output).writes() if options.output else None
    if options.work == "prune" and not options.dry_run:
        store.writes()
    with tempfile.TemporaryDirectory(prefix="dkv-store-") as folder:
        scratch = Path(folder)
        flags = options.flags if options.work in ("ls", "verify") else _open_flags(options.flags)
        caches = caches_of(store, options.recursive, flags, scratch / "heads")
        works = {"ls": _ls, "verify": _verify, "compact": _compact, "prune": _prune}
        return works[options.work](options, store, target, caches, scratch / "copy")


def _say(options: argparse.Namespace, words: str, facts: dict) -> None:
    print(json.dumps(facts) if options.json else words, flush=True)


def _fail(words: str) -> int:
    print(f"dkv-lab store: {' '.join(words.split())}", file=sys.stderr)
    return 1


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _ls(options, store: Store, target, caches: list[Cache], scratch: Path) -> int:
    failed = 0
    for cache in caches:
        facts = cache.facts
        if "error" in facts:
            failed = _fail(facts["error"])
        policy = "whole" if facts.get("whole") else facts.get("policy") or "compacted"
        age = (time.time() - cache.written) / 3600
        words = f"{facts.get('tokens', '-'):>8}  {_mib(cache.bytes):>12}  {age:8.1f} h  {policy:16} {facts.get('model') or '-':24} {cache.url}"
        kept = {key: value for key, value in facts.items() if not key.startswith("verified")}
        _say(options, words, kept | {"bytes": cache.bytes, "etag": cache.etag})
    if not options.json:
        print(f"{len(caches)} caches, {_mib(sum(cache.bytes for cache in caches))}")
    return failed


def _verify(options, store: Store, target, caches: list[Cache], scratch: Path) -> int:
    failed = 0
    for cache in caches:
        copy = scratch / cache.file
        try:
            store.get(cache, copy)
        except Changed as changed:
            _remove(copy)
            failed = _fail(str(changed))
            continue
        done = _dkv("verify", copy, *options.flags)
        if done.returncode != 0:
            failed = _fail(_about(done.stderr, copy, cache.url))
        _say(options, f"{cache.url}: {'damaged' if done.returncode else 'good'}", {"file": cache.url, "good": done.returncode == 0})
        _remove(copy)
    return failed


def _remove(copy: Path) -> None:
    if copy.is_dir():
        shutil.rmtree(copy)
    copy.unlink(missing_ok=True)


def _readable(caches: list[Cache]) -> Iterator[Cache]:
    """Those that a work can go on with; the others are named."""
    for cache in caches:
        if "error" in cache.facts:
            _fail(cache.facts["error"])
        elif cache.whole:
            yield cache


def _compact(options, store: Store, target: Store, caches: list[Cache], scratch: Path) -> int:
    failed = int(any("error" in cache.facts for cache in caches))
    for cache in _readable(caches):
        made_of = {"dkv-source": f"{cache.etag.strip(chr(34))}-{cache.bytes}", "dkv-flags": digest(options.flags)}
        name = (cache.name or cache.file) + (".safetensors" if cache.is_folder else "")  # As dkv compact names it.
        path, url = f"{target.root}/{name}", f"{target.url}/{name}"
        there = target.facts(path)
        if there is not None:
            if there == made_of:
                _say(options, f"{url}: is there already", {"event": "there", "file": url})
            else:
                failed = _fail(f"{url}: is there already, and was made of something else or with other flags: give another output")
            continue
        copy, small = scratch / "in" / cache.file, scratch / "out" / "small"
        try:
            store.get(cache, copy)
            small.parent.mkdir(parents=True, exist_ok=True)
            done = _dkv("compact", copy, "-o", small, *options.flags)
            if done.returncode != 0:
                raise UserError(_about(done.stderr, copy, cache.url))
            target.put(small, path, {"IfNoneMatch": "*"}, made_of)
            size = small.stat().st_size
            _say(options, f"{url}: {_mib(cache.bytes)} -> {_mib(size)}", {"event": "compacted", "file": url, "bytes_before": cache.bytes, "bytes_after": size})
        except UserError as error:
            failed = _fail(str(error))
        for each in (copy, small):
            _remove(each)
    return failed


def _prune(options, store: Store, target, caches: list[Cache], scratch: Path) -> int:
    """`dkv prune` on one copy after the other: the budget of each is what the store's leaves it."""
    before = total = sum(cache.bytes for cache in caches)
    oldest = sorted(caches, key=lambda cache: (cache.written, -cache.bytes))
    current, damages = {cache.url: cache.parts[0] for cache in caches}, []
    # As dkv prune leaves what it cannot read or write; folders are of engines that write themselves.
    stays = {cache.url for cache in caches if "error" in cache.facts or cache.is_folder}
    for cache in _readable(oldest):
        if total <= options.budget:
            break
        copy = scratch / cache.file
        if cache.is_folder:
            why = f"dkv does not write {cache.facts['format']}"
            event = {"event": "left", "file": cache.url, "bytes_before": cache.bytes, "bytes_after": cache.bytes, "why": why}
            _say(options, _pruned(event), event)
            continue
        try:
            store.get(cache, copy)
            room = max(1, cache.bytes - (total - options.budget))
            more = ["--dry-run"] if options.dry_run else []
            done = _dkv("prune", copy.parent, "--budget", room, "--json", "--settle-s", "0", *more, *options.flags)
            event = _event(done.stdout)
            if event is None:
                raise UserError(_about(done.stderr, copy, cache.url) or f"{cache.url}: dkv prune ended with status {done.returncode}")
            event["file"] = cache.url
            if "dkv does not write" in (event.get("why") or ""):
                stays.add(cache.url)
            if event["event"] == "compacted" and not options.dry_run:
                part = cache.parts[0]
                store.put(copy, part.path, {"IfMatch": part.etag}, {})
                current[cache.url] = store.again(part)
            total += event["bytes_after"] - event["bytes_before"]
            damages += [event["damage"]] if event.get("damage") is not None else []
            _say(options, _pruned(event), event)
        except UserError as error:
            _fail(str(error))
        copy.unlink(missing_ok=True)
    for cache in [one for one in oldest if one.url not in stays] if options.delete else []:
        if total <= options.budget:
            break
        now = current[cache.url]
        try:
            if not options.dry_run:
                store.delete(now)
            total -= now.bytes
            _say(options, f"{cache.url}: deleted, {_mib(now.bytes)}", {"event": "deleted", "file": cache.url, "bytes_before": now.bytes, "bytes_after": 0})
        except UserError as error:
            _fail(str(error))
    mean, worst = (sum(damages) / len(damages), max(damages)) if damages else (None, None)
    words = f"{len(caches)} caches, {_mib(before)} -> {_mib(total)}, {'within' if total <= options.budget else 'over'} {_mib(options.budget)}"
    words += f" (damage {mean:.4f} on average, {worst:.4f} at worst)" if damages else ""
    facts = {"caches": len(caches), "bytes_before": before, "bytes_after": total, "damage_mean": mean, "damage_worst": worst}
    _say(options, words, {"event": "total"} | facts)
    return int(total > options.budget)


def _event(printed: str) -> dict | None:
    """What `dkv prune --json` did to its one cache; of a refusal it prints something else."""
    lines = [line for line in printed.splitlines() if line.startswith('{"event":')]
    return next((one for one in map(json.loads, lines) if one["event"] in ("compacted", "left")), None)


def _pruned(event: dict) -> str:
    if event["event"] == "left":
        return f"{event['file']}: left as it is: {event['why']}"
    damage = "not known" if event["damage"] is None else f"{event['damage']:.4f}"
    return f"{event['file']}: {event['share']:.1%} of its tokens, {_mib(event['bytes_before'])} -> {_mib(event['bytes_after'])}, damage {damage}"
