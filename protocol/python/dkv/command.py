"""How the programs written in Python start and end: one command of several, and one line for what the user can mend."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from .errors import DkvError, UserError


def run(main: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """main()'s exit status; 1 for a UserError, a DkvError and an OSError, which become one line; 130 for Ctrl-C."""
    name = os.environ.get("DKV_COMMAND", "dkv")
    try:
        return main() or 0
    except KeyboardInterrupt:
        print(f"\n{name}: {interrupted}", file=sys.stderr)
        return 130
    except (UserError, DkvError, OSError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"{name}: {' '.join(words.split())}", file=sys.stderr)
        return 1


def dispatch(help: str, commands: dict[str, str], arguments: list[str]) -> int | None:
    """Runs the command that the first argument names, with the others. `commands`: name to "module:function"."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(help.strip())
        return 0
    if name not in commands:
        print(f"no command {name}: there are {', '.join(commands)}", file=sys.stderr)
        return 2
    module, _, function = commands[name].partition(":")
    return getattr(importlib.import_module(module), function)(rest)
