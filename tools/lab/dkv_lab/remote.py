"""Saved caches in an object store: `dkv ls`, `verify`, `compact` and `prune` on URLs, through fsspec.

    dkv-lab store ls s3://bucket/caches -r
    dkv-lab store verify s3://bucket/caches
    dkv-lab store compact s3://bucket/caches -o s3://bucket/small -- --capacity 256
    dkv-lab store prune s3://bucket/caches --budget 10GiB --dry-run

Each cache is one object; the program dkv works on a copy in the folder for temporary files (TMPDIR). What follows --
is for dkv. Objects appear whole or not at all, and none is written over that changed meanwhile. compact and prune write
to S3 alone, whose writes can be made conditional; ls and verify read what fsspec reads.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dkv import programs
from dkv.errors import UserError

_HEAD = 64 << 10
_HEADER_MAX = 64 << 20
_OBJECT_MAX = 5 << 30  # Of one request, which is whole or not at all; parts would be joined without a condition by some servers.
_LLAMA = (b"qsgg", b"nsgg", b"\xd8\x3c\x14\xaf")  # Files of theirs have headers among the rows: protocol/container/llama_layout.h.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
# After --: what these words mean for one copy is not what they mean for the store.
_OWN = ("-r", "--recursive", "-o", "--output", "--budget", "--dry-run", "--delete", "--json", "--shard", "--force", "--settle-s", "-j", "--jobs")
# Of dkv's, after --: how a file is read (cli/saved/open_flags.cc).
_OPEN = ("--input-format", "--layout", "--kv-heads", "--model", "--rope-theta", "--rope-interleaved", "--rope-dims", "--key-order")


class Changed(UserError):
    """The object is not what it was when it was read, or it is there already."""


@dataclass
class Cache:
    """One object, and what `dkv ls` says of it."""

    path: str  # As the file system has it.
    url: str
    name: str  # Below the folder that was asked for.
    bytes: int
    etag: str
    written: float  # Seconds since 1970.
    facts: dict | None = None

    @property
    def file(self) -> str:
        """The name of a copy."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def whole(self) -> bool:
        return bool(self.facts and self.facts.get("whole"))


class Store:
    """A folder of an fsspec file system."""

    def __init__(self, url: str):
        if "://" not in url:
            raise UserError(f"{url}: a URL was expected, s3://bucket/folder; paths of this machine are dkv's own: dkv ls, verify, prune")
        try:
            import fsspec

            self.fs, self.root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as missing:
            raise UserError(f"{url}: {missing}: pip install 'dkv-lab[store]'") from None
        except ValueError as unknown:
            raise UserError(f"{url}: {unknown}") from None
        self.url, self.is_s3 = url.rstrip("/"), "s3" in _protocols(self.fs)

    def writes(self) -> "Store":
        if not self.is_s3:
            raise UserError(f"{self.url}: read only: what is written must be conditional, which is built for s3:// alone")
        # s3fs would send again what is left of the file: nothing. botocore, below it, sends it from the beginning.
        self.fs.retries = 1
        return self

    def objects(self, recursive: bool) -> list[Cache]:
        """By name. Raises UserError where there is none."""
        found = self.fs.find(self.root, maxdepth=None if recursive else 1, detail=True)
        caches = [self._cache(path, info) for path, info in sorted(found.items()) if info["type"] == "file"]
        for cache in caches:
            if not {"", ".", ".."}.isdisjoint(cache.name.split("/")):
                raise UserError(f"{cache.url}: no file can have this name: rename the object")
        if not caches:
            raise UserError(f"{self.url}: no object is there")
        return caches

    def _cache(self, path: str, info: dict) -> Cache:
        name = path[len(self.root) :].lstrip("/") or path.rsplit("/", 1)[-1]
        url = self.url if path == self.root else f"{self.url}/{name}"
        when = info.get("LastModified") or info.get("mtime") or info.get("created") or 0
        seconds = when.timestamp() if isinstance(when, datetime.datetime) else float(when)
        return Cache(path, url, name, info["size"], str(info.get("ETag", "")), seconds)

    def head(self, cache: Cache, target: Path) -> None:
        """A file of the object's size with its header alone; llama.cpp's with all of it."""
        first = self.fs.cat_file(cache.path, start=0, end=min(cache.bytes, _HEAD))
        if first[:4] in _LLAMA:
            return self.get(cache, target)
        length = 8 + int.from_bytes(first[:8], "little")
        if len(first) < length <= min(cache.bytes, _HEADER_MAX) and first[8:9] == b"{":
            first += self.fs.cat_file(cache.path, start=len(first), end=length)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(first)
            file.truncate(cache.bytes)
        os.utime(target, (cache.written, cache.written))

    def get(self, cache: Cache, target: Path) -> None:
        """The whole object. Raises Changed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(cache.path, str(target))
            now = self._cache(cache.path, self.fs.info(cache.path))
        except FileNotFoundError:
            raise Changed(f"{cache.url}: it was deleted while it was read") from None
        os.utime(target, (cache.written, cache.written))
        if (now.bytes, now.etag, now.bytes) != (cache.bytes, cache.etag, target.stat().st_size):
            raise Changed(f"{cache.url}: it changed while it was read: left as it is")

    def facts(self, path: str) -> dict | None:
        """What put() stored beside an object; None: there is none."""
        try:
            return dict(self.fs.metadata(path, refresh=True))
        except FileNotFoundError:
            return None

    def put(self, source: Path, path: str, condition: dict, facts: dict) -> None:
        """Whole or not at all, and only if `condition` (IfMatch, IfNoneMatch) holds. Raises Changed."""
        bucket, key, _ = self.fs.split_path(path)
        where = {"Bucket": bucket, "Key": key}
        if source.stat().st_size > _OBJECT_MAX:
            raise UserError(f"s3://{path}: {source.stat().st_size:,} bytes are more than S3 takes at once: left as it is")
        try:
            with source.open("rb") as file:
                self.fs.call_s3("put_object", **where, Body=file, Metadata=facts, **condition)
        except Exception as error:
            if _is_changed(error):
                raise Changed(f"s3://{path}: it changed meanwhile: left as it is") from None
            raise UserError(f"s3://{path}: not written: {error}") from error
        self.fs.invalidate_cache(path)
        if (stored := self.fs.info(path)["size"]) != source.stat().st_size:
            raise Changed(f"s3://{path}: {stored:,} bytes are stored, not {source.stat().st_size:,}: it was written over at once")

    def delete(self, cache: Cache) -> None:
        """Raises Changed."""
        bucket, key, _ = self.fs.split_path(cache.path)
        try:
            self.fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=cache.etag)
        except Exception as error:
            raise Changed(f"{cache.url}: it changed meanwhile: left as it is") if _is_changed(error) else error


def _protocols(fs) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_changed(error: BaseException | None) -> bool:
    """s3fs translates botocore's errors, and keeps them as the cause."""
    while error is not None:
        code = getattr(error, "response", {}).get("Error", {}).get("Code")
        if code in _CHANGED or isinstance(error, FileExistsError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _dkv(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([str(programs.find("dkv")), *map(str, arguments)], capture_output=True, text=True)


def caches_of(store: Store, recursive: bool, flags: list[str], scratch: Path) -> list[Cache]:
    """The objects that are caches, with what `dkv ls` says of them. Skips what `dkv ls` skips."""
    objects = {scratch / str(index) / each.file: each for index, each in enumerate(store.objects(recursive))}
    for copy, each in objects.items():
        store.head(each, copy)
    listed = _dkv("ls", "-r", "--json", scratch, *flags)
    try:
        found = {one["file"]: one for one in json.loads(listed.stdout)["caches"]}
    except (ValueError, KeyError):
        raise UserError(_about(listed.stderr, scratch, store.url) or f"dkv ls ended with status {listed.returncode}") from None
    caches = []
    for copy, each in objects.items():
        if facts := found.get(str(copy)):
            each.facts = facts | {"file": each.url} | ({"error": _about(facts["error"], copy, each.url)} if "error" in facts else {})
            caches.append(each)
        copy.unlink()
    return caches


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
    parser.add_argument("url", metavar="URL", help="a folder of objects, or one object")
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
            failed = _fail(str(changed))
            continue
        done = _dkv("verify", copy, *options.flags)
        if done.returncode != 0:
            failed = _fail(_about(done.stderr, copy, cache.url))
        _say(options, f"{cache.url}: {'damaged' if done.returncode else 'good'}", {"file": cache.url, "good": done.returncode == 0})
        copy.unlink()
    return failed


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
        made_of = {"dkv-source": f"{cache.etag.strip(chr(34))}-{cache.bytes}", "dkv-flags": _digest(options.flags)}
        path, url = f"{target.root}/{cache.name}", f"{target.url}/{cache.name}"
        there = target.facts(path)
        if there is not None:
            if there == made_of:
                _say(options, f"{url}: is there already", {"event": "there", "file": url})
            else:
                failed = _fail(f"{url}: is there already, and was made of something else or with other flags: give another output")
            continue
        copy, small = scratch / "in" / cache.file, scratch / "out" / cache.file
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
            each.unlink(missing_ok=True)
    return failed


def _digest(flags: list[str]) -> str:
    return hashlib.sha256(json.dumps(flags).encode()).hexdigest()[:24]


def _prune(options, store: Store, target, caches: list[Cache], scratch: Path) -> int:
    """`dkv prune` on one copy after the other: the budget of each is what the store's leaves it."""
    before = total = sum(cache.bytes for cache in caches)
    oldest = sorted(caches, key=lambda cache: (cache.written, -cache.bytes))
    current, damages = {cache.path: cache for cache in caches}, []
    stays = {cache.path for cache in caches if "error" in cache.facts}  # As dkv prune leaves what it cannot read or write.
    for cache in _readable(oldest):
        if total <= options.budget:
            break
        copy = scratch / cache.file
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
                stays.add(cache.path)
            if event["event"] == "compacted" and not options.dry_run:
                store.put(copy, cache.path, {"IfMatch": cache.etag}, {})
                current[cache.path] = store._cache(cache.path, store.fs.info(cache.path))
            total += event["bytes_after"] - event["bytes_before"]
            damages += [event["damage"]] if event.get("damage") is not None else []
            _say(options, _pruned(event), event)
        except UserError as error:
            _fail(str(error))
        copy.unlink(missing_ok=True)
    for cache in [one for one in oldest if one.path not in stays] if options.delete else []:
        if total <= options.budget:
            break
        now = current[cache.path]
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
