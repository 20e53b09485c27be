"""What of dkv's programs needs Python's own file formats.

    python -m dkv convert cache.pt -o cache.safetensors --model FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import command


def token_ids(path: Path):
    """[n] int64 of a file with ids: a JSON list, or numbers between blanks. Raises CommandError."""
    import torch

    text = path.read_text().strip().strip("[]").replace(",", " ")
    try:
        return torch.tensor([int(word) for word in text.split()], dtype=torch.int64)
    except ValueError as error:
        raise command.CommandError(f"{path}: no list of token ids: {error}") from None


def _convert(options: argparse.Namespace) -> int:
    from transformers import AutoConfig

    from dkv.hf.convert import convert

    config, name = None, options.model
    if options.model and Path(options.model).is_dir():
        config, name = AutoConfig.from_pretrained(options.model), Path(options.model).resolve().name
    tokens = token_ids(options.tokens) if options.tokens else None
    size = convert(options.file, options.output, model=name, config=config, tokens=tokens)
    print(f"{options.output}: {size:,} bytes")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dkv", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help="a cache that torch.save wrote, as dkv's own file")
    convert.add_argument("file", type=Path, metavar="FILE", help="a list of (K, V) or a DynamicCache, read with weights_only")
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    convert.add_argument("--model", help="a Hugging Face folder (its config says how keys are turned), or a name for people")
    convert.add_argument("--tokens", type=Path, metavar="FILE", help="the prompt's token ids: a JSON list")
    convert.set_defaults(run=_convert)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(command.run(main))
