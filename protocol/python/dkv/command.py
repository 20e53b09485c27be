"""How the programs that are Python's end: what a user can mend is one line, not a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from .words import DkvError


class CommandError(Exception):
    """One line for the user; exit status 1."""


def run(main: Callable[[], int | None], *expected: type[Exception]) -> int:
    """main()'s exit status; 1 for a CommandError, a DkvError, an OSError and what else is `expected`; 130 for Ctrl-C."""
    name = os.environ.get("DKV_COMMAND", "dkv")
    try:
        return main() or 0
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except (CommandError, DkvError, OSError, *expected) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"{name}: {' '.join(words.split())}", file=sys.stderr)
        return 1
