"""How often this process, or one that it descends from, has forked.

Arenas are shared memory: after a fork both processes see what either writes. A cache compares the count with the one
from when it made its arena.
"""

from __future__ import annotations

import os

_count = 0


def count() -> int:
    return _count


def _forked() -> None:
    global _count
    _count += 1


os.register_at_fork(after_in_parent=_forked, after_in_child=_forked)
