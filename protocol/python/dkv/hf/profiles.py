"""The calibrated profile of a model: the one that was named, or the one that was made for these very weights.

"auto" looks where profile_folders.py says. `dkv profile` lists them.
"""

from __future__ import annotations

import functools
import logging
import weakref
from pathlib import Path

import torch

import dkv
from dkv.profile_folders import paths

from . import profile_file as files

log = logging.getLogger("dkv.hf")

AUTO = "auto"
_fingerprints: "weakref.WeakKeyDictionary[torch.nn.Module, dict]" = weakref.WeakKeyDictionary()


def resolve(model: torch.nn.Module, given: str | Path | dkv.Profile | None, force: bool = False) -> dkv.Profile | None:
    """What a session is to be opened with. None: "auto" found none, or none was given.

    force   take a profile of other weights, too; of another geometry, never

    Raises ProfileError, one line: no such file, malformed, another geometry, other weights.
    """
    if given is None or isinstance(given, dkv.Profile):
        return given
    if str(given) == AUTO:
        try:
            found = find(describe(model))
        except Exception as error:  # Configs refuse in many ways; a model that cannot be described has no profile.
            log.info("dkv: no profile of %s: %s", type(model).__name__, error)
            return None
        return None if found is None else found[1]
    described = describe(model)
    path = Path(given).expanduser()
    made = files.load(path, files.Geometry(**described["geometry"]))
    if made.model.get("weights") != described["weights"] and not force:
        raise files.ProfileError(
            f"{path} was made for other weights ({made.model.get('name')}) of the same shape: "
            "calibrate this model, or force it"
        )
    return _as_wish(path.stem, made)


def find(described: dict) -> tuple[Path, dkv.Profile] | None:
    """The first profile that was made for these weights. Files that are none are passed over."""
    geometry = files.Geometry(**described["geometry"])
    for path in paths():
        model, wish = _read_once(path, path.stat().st_mtime_ns)
        if wish is not None and model.get("weights") == described["weights"] and files.Geometry(**model["geometry"]) == geometry:
            return path, wish
    return None


@functools.lru_cache(maxsize=32)
def _read_once(path: Path, changed: int) -> tuple[dict, dkv.Profile | None]:
    """What the profile was made for, and the profile: every cache asks for them. None: the file is none."""
    try:
        made = files.load(path)
    except files.ProfileError:
        return {}, None
    return made.model, _as_wish(path.stem, made)


def describe(model: torch.nn.Module) -> dict:
    """Geometry and fingerprint; read from the weights once per model.

    Of the two fingerprints only that of the weights counts: a config's changes with transformers' version.
    """
    if model not in _fingerprints:
        slidings = files.sliding_windows(model.config.get_text_config(decoder=True))
        _fingerprints[model] = files.describe_model(model, slidings, type(model).__name__)
    return _fingerprints[model]


def _as_wish(name: str, made: files.Profile) -> dkv.Profile:
    return dkv.Profile(
        name=name, weights=made.weights, alpha=made.alpha, floor=made.floor, kernel=made.kernel, surrogate=made.surrogate_wish()
    )
