"""Numbers for people."""

from __future__ import annotations


def thousands(value: int) -> str:
    return f"{value:,}"


def bytes_words(count: float) -> str:
    """ "1.5 MiB": binary units, three digits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def percent(share: float) -> str:
    """0.0345 → "3.5 %"."""
    return f"{100 * share:.3g} %" if share < 0.0999 else f"{100 * share:.1f} %"
