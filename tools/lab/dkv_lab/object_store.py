"""Folders of objects behind a URL: read through fsspec, written to S3 whole and on a condition, or not at all."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError

_HEAD = 64 << 10
_HEADER_MAX = 64 << 20
_OBJECT_MAX = 5 << 30  # Of one request, which is whole or not at all; parts would be joined without a condition by some servers.
_LLAMA = (b"qsgg", b"nsgg", b"\xd8\x3c\x14\xaf")  # Files of theirs have headers among the rows: protocol/container/llama_layout.h.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Changed(UserError):
    """The object is not what it was when it was read, or it is there already."""


@dataclass
class Object:
    path: str  # As the file system has it.
    url: str
    name: str  # Below the folder that was asked for.
    bytes: int
    etag: str
    written: float  # Seconds since 1970.


@dataclass
class Cache:
    """What `dkv ls` says of an object, or of a folder of them."""

    url: str
    name: str  # Below the folder that was asked for; "" is that folder.
    parts: list[Object]
    facts: dict

    @property
    def file(self) -> str:
        """The name of a copy."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def is_folder(self) -> bool:
        return [part.url for part in self.parts] != [self.url]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def written(self) -> float:
        return max(part.written for part in self.parts)

    @property
    def etag(self) -> str:
        """Of a folder a digest of its objects' names and ETags."""
        if not self.is_folder:
            return self.parts[0].etag
        return digest([[part.name[len(self.name) :], part.etag] for part in self.parts])

    @property
    def whole(self) -> bool:
        return bool(self.facts.get("whole"))


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

    def objects(self, recursive: bool) -> list[Object]:
        """By name. Raises UserError where there is none."""
        found = self.fs.find(self.root, maxdepth=None if recursive else 1, detail=True)
        objects = [self._object(path, info) for path, info in sorted(found.items()) if info["type"] == "file"]
        for each in objects:
            if not {"", ".", ".."}.isdisjoint(each.name.split("/")):
                raise UserError(f"{each.url}: no file can have this name: rename the object")
        if not objects:
            raise UserError(f"{self.url}: no object is there{'' if recursive else '; with -r its folders count, too'}")
        return objects

    def again(self, part: Object) -> Object:
        """As it is now."""
        return self._object(part.path, self.fs.info(part.path))

    def _object(self, path: str, info: dict) -> Object:
        name = path[len(self.root) :].lstrip("/") or path.rsplit("/", 1)[-1]
        url = self.url if path == self.root else f"{self.url}/{name}"
        when = info.get("LastModified") or info.get("mtime") or info.get("created") or 0
        seconds = when.timestamp() if isinstance(when, datetime.datetime) else float(when)
        return Object(path, url, name, info["size"], str(info.get("ETag", "")), seconds)

    def head(self, part: Object, target: Path) -> bool:
        """A file of the object's size with its header alone. False: its header does not say all, and no file was made."""
        first = self.fs.cat_file(part.path, start=0, end=min(part.bytes, _HEAD))
        if first[:4] in _LLAMA:
            return False
        length = 8 + int.from_bytes(first[:8], "little")
        if len(first) < length <= min(part.bytes, _HEADER_MAX) and first[8:9] == b"{":
            first += self.fs.cat_file(part.path, start=len(first), end=length)
        make_folder(target.parent, part.url)
        with target.open("wb") as file:
            file.write(first)
            file.truncate(part.bytes)
        os.utime(target, (part.written, part.written))
        return True

    def get(self, cache: Cache, target: Path) -> None:
        """All of it. Raises Changed."""
        for part in cache.parts:
            self.get_object(part, target / part.name[len(cache.name) :].lstrip("/") if cache.is_folder else target)

    def get_object(self, part: Object, target: Path) -> None:
        """Raises Changed."""
        make_folder(target.parent, part.url)
        try:
            self.fs.get_file(part.path, str(target))
            now = self.again(part)
        except FileNotFoundError:
            raise Changed(f"{part.url}: it was deleted while it was read") from None
        os.utime(target, (part.written, part.written))
        if (now.bytes, now.etag, now.bytes) != (part.bytes, part.etag, target.stat().st_size):
            raise Changed(f"{part.url}: it changed while it was read: left as it is")

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

    def delete(self, part: Object) -> None:
        """Raises Changed."""
        bucket, key, _ = self.fs.split_path(part.path)
        try:
            self.fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=part.etag)
        except Exception as error:
            raise Changed(f"{part.url}: it changed meanwhile: left as it is") if _is_changed(error) else error


def make_folder(folder: Path, url: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{url}: another object has the name of its folder: rename one of them") from None


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


def digest(flags: list[str]) -> str:
    return hashlib.sha256(json.dumps(flags).encode()).hexdigest()[:24]
