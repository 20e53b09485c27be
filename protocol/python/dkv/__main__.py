"""The Python side of dkv.

    python -m dkv weights                           a folder with SmolLM2-135M, for from_pretrained()
    python -m dkv convert cache.pt -o cache.safetensors --model FOLDER
                                                    a cache that torch.save wrote, as a file that dkv reads
    python -m dkv capture MODEL slot.bin -o prompt.safetensors
                                                    the queries of a saved cache that has none
    python -m dkv profile                           the calibrated profiles on this machine
    python -m dkv.hf SCRIPT                         a transformers script with compressed caches
    dkv --help, dkvd --help                         the programs: the controller and the sidecar

In a script, while dkvd runs:

    import dkv.hf
    cache = dkv.hf.Cache(model, capacity=512)
    output = model.generate(**inputs, past_key_values=cache)
    print(cache.report())
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import DkvError, command, library_version

COMMANDS = {
    "weights": "dkv.hf.commands:weights",
    "convert": "dkv.hf.commands:convert",
    "capture": "dkv.hf.requery:main",
    "profile": "dkv.hf.commands:profile",
}


def _installed() -> str:
    """The package, its library, and where both are."""
    from ._abi import library_path

    lines = [f"dkv: {Path(__file__).parent}"]
    try:
        lines.append(f"libdkv {library_version()}: {library_path()}")
    except DkvError as error:
        lines.append(str(error))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int | None:
    arguments = sys.argv[1:] if arguments is None else arguments
    return command.dispatch(f"{__doc__}\n{_installed()}", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(command.run(main))
