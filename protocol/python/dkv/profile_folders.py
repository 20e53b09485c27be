"""Where calibrated profiles are: in $DKV_PROFILES (folders, as in PATH), in ~/.cache/dkv/profiles, and with dkv."""

from __future__ import annotations

import os
from pathlib import Path

from .programs import HERE

SHIPPED = HERE / "profiles"


def cache_root() -> Path:
    """$DKV_CACHE, else ~/.cache/dkv."""
    chosen = os.environ.get("DKV_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dkv"


def folders() -> list[Path]:
    given = [Path(folder).expanduser() for folder in os.environ.get("DKV_PROFILES", "").split(os.pathsep) if folder]
    return [*given, cache_root() / "profiles", SHIPPED]


def paths() -> list[Path]:
    return [path for folder in folders() if folder.is_dir() for path in sorted(folder.glob("*.json"))]
