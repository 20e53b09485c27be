"""Real text that any Debian machine has: licences, Python's reference and sources, Perl's manuals, packages' documentation.

Documents are dealt into three parts by a hash of their name, so that what a profile is made from,
what its parameters are tuned on and what is reported never share a page.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from dkv.errors import UserError

PARTS = ("calibration", "tuning", "report")
_MIN_CHARACTERS = 8_000
_MAX_CHARACTERS = 400_000
_KINDS_MAX = 400  # Documents of one kind that are looked at.


class NoText(UserError):
    """This machine has nothing to cut prompts from."""


@dataclass(frozen=True)
class Document:
    kind: str
    name: str
    text: str

    @property
    def part(self) -> str:
        # Versions of one licence belong together.
        stem = re.sub(r"[-_.\d]+$", "", self.name.rsplit("/", 1)[-1].split(".")[0])
        return PARTS[hashlib.sha256(f"{self.kind}/{stem}".encode()).digest()[0] % len(PARTS)]


@functools.lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Everything long enough to cut a prompt from, in a fixed order."""
    found = [*_licences(), *_python_reference(), *_python_sources(), *_perl_manuals(), *_package_documentation()]
    return tuple(document for document in found if len(document.text) >= _MIN_CHARACTERS)


class Reader:
    """Excerpts of one part, the kinds of text in turn; the same for the same seed on the same machine."""

    def __init__(self, part: str, seed: int):
        self._random = random.Random(f"{part}/{seed}")
        self._kinds: dict[str, list[Document]] = {}
        for document in documents():
            if document.part == part:
                self._kinds.setdefault(document.kind, []).append(document)
        if not self._kinds:
            raise NoText(f"no text of at least {_MIN_CHARACTERS} characters was found for the {part} part")
        self._turn = 0

    def excerpt(self, characters: int, kinds: tuple[str, ...] | None = None) -> tuple[Document, str]:
        """At least `characters` of running text, from the start of a paragraph; several documents where one is short."""
        kinds = [kind for kind in self._kinds if kinds is None or kind in kinds] or list(self._kinds)
        choices = self._kinds[kinds[self._turn % len(kinds)]]
        self._turn += 1
        first = self._random.choice(choices)
        latest = max(0, len(first.text) - characters)
        start = self._random.randint(0, latest) if latest else 0
        start = first.text.rfind("\n\n", 0, start) + 2 if start else 0
        text = first.text[max(0, start) :]
        while len(text) < characters:
            text += "\n\n" + self._random.choice(choices).text
        return first, text[:characters]


def _licences() -> list[Document]:
    return _files("licence", [path for path in _sorted("/usr/share/common-licenses", "*") if not path.is_symlink()])


def _python_reference() -> list[Document]:
    """The language reference, which Python ships for help(): topics joined until they are long enough."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    out, names, text = [], [], ""
    for name in sorted(topics):
        names.append(name)
        text += "\n\n" + _clean(topics[name])
        if len(text) >= 2 * _MIN_CHARACTERS:
            out.append(Document("reference", f"topics/{names[0]}", text.strip()))
            names, text = [], ""
    return out


def _python_sources() -> list[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    names = [path for path in _sorted(library, "*.py") if 12_000 < path.stat().st_size < _MAX_CHARACTERS]
    return [Document("source", path.name, _read(path)) for path in names]


def _perl_manuals() -> list[Document]:
    out = []
    for path in _sorted("/usr/share/perl", "*/**/*.p[mo]d")[:_KINDS_MAX] + _sorted("/usr/share/perl", "*/**/*.pm"):
        pod = "\n\n".join(re.findall(r"^=head1.*?(?=^=cut|\Z)", _read(path), re.M | re.S))
        plain = re.sub(r"^=(head\d|item|over|back|encoding|for|begin|end)\b ?", "", pod, flags=re.M)
        plain = re.sub(r"[A-Z]<{1,2} ?([^<>]*?) ?>{1,2}", r"\1", plain)
        if len(plain) >= _MIN_CHARACTERS:
            out.append(Document("manual", path.name, _clean(plain)))
    return out


def _package_documentation() -> list[Document]:
    paths = []
    for pattern in ("*/README*", "*/NEWS*", "*/*.txt*", "*/FAQ*"):
        paths += [path for path in _sorted("/usr/share/doc", pattern) if path.is_file() and not path.is_symlink()]
    return _files("package", paths[:_KINDS_MAX])


def _files(kind: str, paths: list[Path]) -> list[Document]:
    return [Document(kind, "/".join(path.parts[-2:]), _clean(_read(path))) for path in paths]


def _sorted(folder, pattern: str) -> list[Path]:
    return sorted(path for path in Path(folder).glob(pattern) if path.is_file())


def _read(path: Path) -> str:
    """As text, or nothing when it is none."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data[:_MAX_CHARACTERS].decode("utf-8", "ignore") if b"\0" not in data[:4096] else ""
    except OSError:
        return ""


def _clean(text: str) -> str:
    text = re.sub(r"[ \t]+$", "", text.replace("\r", ""), flags=re.M)
    text = re.sub(r"([=\-*_.#~])\1{5,}", r"\1\1\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
